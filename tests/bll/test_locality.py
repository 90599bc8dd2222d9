"""The check before training: what is refused, what the message names, and that nothing changed."""

import copy

import pytest
import torch
from torch import nn
from wrap_nets import (
    Checkpointed,
    Layer,
    Recurrent,
    ResNet,
    Tied,
    Tokens,
    UNet,
    hook_count,
    mlp,
    same,
    seeded,
    snapshot,
)

import bll

X = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 2, 1, 0])


class Embedded(nn.Module):
    """A token model whose head is its embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(3, 8)
        self.layers = nn.ModuleList(Layer(8) for _ in range(3))
        self.head = nn.Linear(8, 3, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        tokens = self.embed((x > 0).long())
        for layer in self.layers:
            tokens, _ = layer(tokens)
        return self.head(tokens.mean(dim=1))


class Scaled(nn.Module):
    """Block-crossing by a bare parameter of the root."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 3)

    def forward(self, x):
        return self.second(self.first(x * self.scale) * self.scale)


class Wrapper:
    """An output object that no pytree knows."""

    def __init__(self, value):
        self.value = value


class Opaque(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 8)

    def forward(self, x):
        return Wrapper(self.inner(x))


class Unpacking(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = Opaque()
        self.second = nn.Linear(8, 3)

    def forward(self, x):
        return self.second(self.first(x).value)


def skip_to_functional_end():
    return UNet(functional_end=True)


def reentrant():
    return Checkpointed(reentrant=True)


def checkpointed_cut():
    return Checkpointed(region="second")


def cells(*names):
    return lambda: Recurrent(names)


REFUSED = [
    ("skip", UNet, ["mid"], ["'enc'", "'dec'", "'mid'", "skip"]),
    ("skip to the model's end", skip_to_functional_end, ["mid"], ["'enc'", "'output'", "skip"]),
    ("tied weights", Tied, ["middle"], ["'first'", "'second'", "tied"]),
    ("tied embedding", Embedded, None, ["'embed'", "'head'", "tied"]),
    ("shared bare parameter", Scaled, ["first"], ["'scale'", "'first'", "'output'"]),
    ("module in two blocks", cells("cell", "other", "cell"), ["other"], ["'cell'", "called in"]),
    ("cut called twice", Recurrent, ["cell"], ["'cell'", "2 times"]),
    ("cut never called", Recurrent, ["idle"], ["'idle'", "never"]),
    ("wrong order", cells("cell", "other"), ["other", "cell"], ["execution order", "cell, other"]),
    ("empty last block", mlp, ["1", "3"], ["'output'", "empty"]),
    ("empty first block", mlp, ["0", "1"], ["'0'", "empty"]),
    ("reentrant checkpointing", reentrant, ["second"], ["'second'", "use_reentrant=False"]),
    ("cut in a checkpoint", checkpointed_cut, ["second"], ["'second'", "checkpointed region"]),
    ("unknown output object", Unpacking, ["first"], ["'first'", "Wrapper"]),
]


def cases():
    return pytest.mark.parametrize(
        ("make", "blocks", "words"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
    )


@cases()
def test_refused_before_training(make, blocks, words):
    model = seeded(make)
    before, hooks = snapshot(model), hook_count(model)
    with pytest.raises(bll.LocalityError) as caught:
        bll.wrap(model, blocks, num_classes=3, example=X)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert same(snapshot(model), before)
    assert hook_count(model) == hooks and not hasattr(model, "bll")


@cases()
def test_refused_at_the_first_forward_without_an_example(make, blocks, words):
    model = seeded(make)
    before, hooks = snapshot(model), hook_count(model)
    bll.wrap(model, blocks, num_classes=3)
    with pytest.raises(bll.LocalityError) as caught:
        model(X, y=Y)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert same(snapshot(model), before)
    assert hook_count(model) == hooks and not hasattr(model, "bll")
    assert isinstance(seeded(make)(X), type(model(X)))


@pytest.mark.parametrize("rule", ["bp", "bp-deepsup"])
def test_rules_that_do_not_cut_take_skips_and_tied_weights(rule):
    for make, blocks in ((UNet, ["mid"]), (Tied, ["middle"])):
        classes = 3 if make is UNet else 16
        model = bll.wrap(seeded(make), blocks, rule=rule, num_classes=classes, example=X)
        model(X, y=Y).loss.backward()
        groups = bll.param_groups(model, lr=0.1)
        listed = [id(p) for group in groups for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in model.parameters())


def test_a_cut_where_one_tensor_carries_everything_is_taken():
    bll.wrap(seeded(UNet), ["enc"], num_classes=3, example=X)
    bll.wrap(seeded(ResNet), ["layer1", "layer2"], num_classes=3, example=torch.zeros(1, 1, 8, 8))


def test_checkpointing_inside_a_block():
    model = bll.wrap(seeded(Checkpointed), ["second"], num_classes=3, example=X)
    plain = bll.wrap(seeded(lambda: Checkpointed("none")), ["second"], num_classes=3, example=X)
    for wrapped in (model, plain):
        wrapped(X, Y).loss.backward()
    assert torch.equal(model.first[0].weight.grad, plain.first[0].weight.grad)


def test_frozen_and_unused_parameters_belong_to_a_block():
    model = seeded(cells("cell", "other"))
    model.other.requires_grad_(False)
    bll.wrap(model, ["cell", "other"], num_classes=3, example=X)
    owners = {name: b.name for b in model.bll.blocks for name in b.parameters}
    assert owners["other.weight"] == "other" and owners["cell.weight"] == "cell"
    assert set(owners) == {n for n, _ in model.named_parameters() if not n.startswith("bll.")}


def test_an_error_of_the_model_itself_leaves_it_wrapped_and_usable():
    model = bll.wrap(seeded(UNet), ["enc"], num_classes=3)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(4, 5), y=Y)
    assert model(X, y=Y).loss.requires_grad
    other = seeded(UNet)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        bll.wrap(other, ["enc"], num_classes=3, example=torch.zeros(4, 5))
    assert hook_count(other) == 0


def test_the_check_leaves_statistics_and_modes_alone():
    model = seeded(ResNet).eval()
    model.layer1.train()
    before = snapshot(model)
    bll.wrap(model, ["layer1"], num_classes=3, example=torch.zeros(1, 1, 8, 8))
    assert same({n: v for n, v in snapshot(model).items() if not n.startswith("bll.")}, before)
    assert model.layer1.training and not model.layer2.training


def test_the_check_allocates_no_weights():
    class Wide(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.device("meta"):
                self.layers = nn.Sequential(*(nn.Linear(100_000, 100_000) for _ in range(3)))
            self.rows = []

        def forward(self, x):
            return self.layers(x)

    example = torch.empty(2, 100_000, device="meta")
    model = bll.wrap(Wide(), num_classes=100_000, rule="bp-deepsup", example=example)
    assert model.bll.messages[0].table.device.type == "meta"


def test_hooks_of_the_user_stay():
    model = seeded(Tokens)
    seen = []
    model.layers[0].register_forward_hook(lambda *_: seen.append(1))
    ids = torch.zeros(4, 3, dtype=torch.long)
    bll.wrap(model, num_classes=3, example=ids)
    seen.clear()
    model(ids, labels=Y).loss.backward()
    assert seen == [1]
    bll.unwrap(model)
    assert hook_count(model) == 1
    assert copy.deepcopy(model).eval()(ids)["logits"].shape == (4, 3)
