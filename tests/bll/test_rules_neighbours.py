"""Rules that see the block before or behind: what they read of it, and what they must not touch."""

import dataclasses
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional
from wrap_nets import ResNet, Tokens, hook_count, seeded

import bll
from bll.features import FeatureSpec
from bll.rules import get_rule
from bll.rules.base import Before


def data(classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (12,), generator=generator)


def outputs_of(model, names):
    """What modules returned before the cut detached it, by name; filled by forward passes."""
    kept = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: kept.update({name: out}), prepend=True
        )
    return kept


def posterior(feature, table):
    rows = functional.adaptive_avg_pool2d(feature, min(4, feature.shape[-1])).flatten(1)
    return (rows @ table.T).softmax(1)


@pytest.mark.parametrize("agreement", [1.0, 0.3])
def test_sll_adds_the_distance_to_the_posterior_before(agreement):
    x, y = data()
    rule = get_rule("sll", agreement=agreement, std=0.5)
    names = ["layer1", "layer2"]
    model = bll.wrap(seeded(ResNet).double(), names, num_classes=3, rule=rule, example=x)
    kept = outputs_of(model, names)
    out = model(x, y=y)
    tables = [message.table for message in model.bll.messages]
    p, q = (posterior(kept[name], table) for name, table in zip(names, tables, strict=True))
    rows = torch.arange(len(y))
    first = -p[rows, y].log().mean()
    distance = -(p.detach() * q).sqrt().sum(1).log()
    second = (-q[rows, y].log() + agreement * distance).mean()
    for name, expected in zip(names, (first, second), strict=True):
        loss = out.block_losses[name]
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=1e-12)
        given = torch.autograd.grad(loss, kept[name], retain_graph=True)
        wanted = torch.autograd.grad(expected, kept[name], retain_graph=True)
        torch.testing.assert_close(given, wanted, rtol=1e-9, atol=1e-12)
    (none,) = torch.autograd.grad(
        out.block_losses["layer2"], [kept["layer1"]], allow_unused=True, retain_graph=True
    )
    assert none is None


def test_sll_leaves_out_the_tokens_that_are_ignored():
    """Of the distance too: it is the loss of the positions that count by themselves."""
    ids = torch.arange(24).reshape(4, 6) % 11
    labels = torch.tensor([0, 1, 2, -100, 1, -100]).repeat(4, 1)
    model = seeded(Tokens)
    bll.wrap(model, ["layers.0", "layers.1"], rule="sll", num_classes=3, example=ids)
    generator = torch.Generator().manual_seed(2)
    first, second = (torch.randn(4, 6, 8, generator=generator) for _ in range(2))
    given = model.bll.block_loss(1, second, labels, first)
    counts = labels != -100
    messages = model.bll.messages
    before = Before(first[counts], messages[0], None)
    alone = model.bll.rule.input_loss(second[counts], labels[counts], messages[1], None, before)
    torch.testing.assert_close(given, alone)


def test_sll_refuses_neighbours_of_unlike_rows():
    ids = torch.arange(24).reshape(4, 6) % 11
    model = seeded(Tokens)
    options = {"num_classes": 3, "example": ids, "tokens": "position"}
    bll.wrap(model, ["layers.0", "layers.1"], rule="sll", **options)
    pooled, labels = torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)
    model.bll.blocks = tuple(
        dataclasses.replace(b, feature=FeatureSpec((8,), None, 8, torch.float32))
        if index == 0
        else b
        for index, b in enumerate(model.bll.blocks)
    )
    with pytest.raises(ValueError, match=r"'layers.0' with the next row by row; .* 4 and 24 rows"):
        model.bll.block_loss(1, torch.zeros(4, 6, 8), labels, pooled)


def test_the_average_follows_the_next_block():
    x, y = data()
    rule = get_rule("dgl", aux="momentum", decay=0.75)
    model = bll.wrap(seeded(ResNet).double(), ["layer1"], num_classes=3, rule=rule, example=x)
    (name, *_) = model.bll.blocks[1].modules
    live = dict(model.get_submodule(name).named_parameters())
    held = dict(model.bll.messages[0].average.module.named_buffers())
    expected = {key: tensor.detach().clone() for key, tensor in live.items()}
    assert expected and all(torch.equal(held[key], expected[key]) for key in expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(3):
        for key in expected:
            expected[key] = 0.75 * expected[key] + 0.25 * live[key].detach()
        out = model(x, y=y)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        for key, tensor in expected.items():
            torch.testing.assert_close(held[key], tensor, rtol=1e-12, atol=1e-13)
    assert not any(torch.equal(held[key], live[key]) for key in expected)


class Pair(nn.Module):
    """Takes two inputs."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x, y):
        return self.linear(x) + y


class TwoInputs(nn.Module):
    """Its second block takes more than the feature."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), Pair(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x), x))


def test_momentum_refuses_a_block_that_does_not_take_the_feature_alone():
    model, x = TwoInputs(), torch.zeros(2, 8)
    rule = get_rule("dgl", aux="momentum")
    with pytest.raises(ValueError, match=r"takes the feature \[2, 8\] alone; Pair does not"):
        bll.wrap(model, ["first"], num_classes=3, rule=rule, example=x)
    assert not hasattr(model, "bll") and hook_count(model) == 0


def chain(*widths, in_place=False):
    layers = [nn.Sequential(nn.Linear(a, b)) for a, b in itertools.pairwise(widths)]
    for layer in layers[1:]:
        layer.insert(0, nn.ReLU(inplace=in_place))
    return nn.Sequential(*layers, nn.Linear(widths[-1], 3))


def test_augmented_copies_later_layers_at_equal_distances():
    x = torch.zeros(2, 8)
    rule = get_rule("dgl", aux="augmented", layers=2)
    model = bll.wrap(seeded(lambda: chain(8, 6, 5, 7, 4)), num_classes=3, rule=rule, example=x)
    found = [
        [tuple(part.weight.shape) for part in message.network.modules() if hasattr(part, "weight")]
        for message in model.bll.messages
    ]
    # Block 0 takes the layers of blocks 1 and 3, with a map from 5 to 7 between; block 3 has none.
    assert found == [[(5, 6), (7, 5), (4, 7)], [(7, 5), (4, 7)], [(4, 7)], []]
    copied = model.bll.messages[2].network[0].module[1].weight
    assert copied.requires_grad and not torch.equal(copied, model[3][1].weight)
    assert not any("_later" in name or "_watched" in name for name in model.state_dict())


@pytest.mark.parametrize("aux", ["momentum", "augmented"])
def test_later_layers_that_write_in_place_leave_the_feature_alone(aux):
    x, y = torch.randn(6, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 3
    losses = []
    for in_place in (False, True):
        model = seeded(lambda w=in_place: chain(8, 6, 6, in_place=w))
        bll.wrap(model, ["0", "1"], num_classes=3, rule=get_rule("dgl", aux=aux), example=x)
        out = model(x, y=y)
        out.loss.backward()
        losses.append(([*out.block_losses.values()], [p.grad for p in model.parameters()]))
    torch.testing.assert_close(losses[0], losses[1])
