"""VGG8b and the transformers: shapes, cuts, wrapping and a training step."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

import bll
from bll.data.reversal import reversal_batch
from bll.models import build_network, gpt, reversal_encoder
from bll.models.transformer import SequenceTransformer


def test_vgg8b_shrinks_as_published():
    model = build_network("vgg8b", (3, 32, 32), 10, width=2).model
    shapes = []
    for layer in list(model.children())[:-1]:
        layer.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape[1:])))
    model(torch.zeros(2, 3, 32, 32))
    channels = [(2, 32), (4, 16), (4, 16), (8, 8), (8, 4), (8, 2)]
    assert shapes == [*((c, side, side) for c, side in channels), (16,)]


def test_vgg8b_blocks():
    with torch.device("meta"):
        every = build_network("vgg8b", (1, 28, 28), 10, blocks=8).cuts
        assert every == ("conv1", "conv2", "conv3", "conv4", "conv5", "conv6", "hidden")
        assert build_network("vgg8b", (1, 28, 28), 10, blocks=1).cuts == ()
        # By multiply-adds, in millions: conv1 0.9, conv2 231, conv3 116, conv4 231, conv5 116, ...
        assert build_network("vgg8b", (1, 28, 28), 10, blocks=3).cuts == ("conv2", "conv4")


@pytest.mark.parametrize("rule", ["bll", "pred-sim"])
def test_a_local_step_of_vgg8b(rule):
    torch.manual_seed(0)
    network = build_network("vgg8b", (1, 8, 8), 10, blocks=8, width=4)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    model = bll.wrap(network.model, network.cuts, rule=rule, num_classes=10, example=x)
    optimizer = torch.optim.Adam(bll.param_groups(model, lr=1e-2))
    losses = []
    for _ in range(15):
        out = model(x, y=y)
        losses.append([loss.item() for loss in out.block_losses.values()])
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    assert len(losses[0]) == 8
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    assert isinstance(bll.executor(model).certificate, list)


def transformer_parameters(symbols, classes, positions, depth, width, hidden):
    attention = 4 * (width**2 + width)
    perceptron = 2 * width * hidden + hidden + width
    norms = 4 * width
    outside = (symbols + positions) * width + 2 * width + width * classes + classes
    return depth * (attention + perceptron + norms) + outside


def test_the_reversal_encoder_is_that_of_the_task():
    network = reversal_encoder()
    model = network.model
    assert len(model.layers) == 20 and {layer.heads for layer in model.layers} == {1}
    assert network.cuts == tuple(f"layers.{index}" for index in range(19))
    count = sum(p.numel() for p in model.parameters())
    assert count == transformer_parameters(10, 10, 10, 20, 64, 256)
    assert reversal_encoder(depth=6, blocks=3).cuts == ("layers.1", "layers.3")
    assert model(torch.zeros(3, 10, dtype=torch.long)).shape == (3, 10, 10)


def test_the_decoder_sees_no_later_symbol():
    torch.manual_seed(0)
    network = gpt(11, positions=8, depth=2, width=8, heads=2)
    model, symbols = network.model.eval(), torch.randint(0, 11, (2, 6))
    count = sum(p.numel() for p in model.parameters())
    assert count == transformer_parameters(11, 11, 8, 2, 8, 32)
    changed = symbols.clone()
    changed[:, 4] = (changed[:, 4] + 1) % 11
    before, after = model(symbols), model(changed)
    assert before.shape == (2, 6, 11)
    assert torch.equal(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])
    encoder = reversal_encoder(11, depth=2, width=8, hidden=8).model
    before, after = encoder(symbols), encoder(changed)
    assert not torch.allclose(before[:, 0], after[:, 0])


def test_attention_against_its_definition():
    torch.manual_seed(0)
    model = SequenceTransformer(5, 5, 4, depth=1, width=6, heads=3, causal=True).double()
    layer, x = model.layers[0], torch.randn(2, 4, 6, dtype=torch.float64)
    h = layer.norm_attention(x)
    queries, keys, values = layer.queries_keys_values(h).split(6, dim=2)
    heads = []
    for start in (0, 2, 4):
        q, k, v = (part[:, :, start : start + 2] for part in (queries, keys, values))
        scores = q @ k.transpose(1, 2) / 2**0.5
        scores = scores.masked_fill(torch.ones(4, 4).triu(1).bool(), float("-inf"))
        heads.append(scores.softmax(2) @ v)
    mixed = x + layer.mix(torch.cat(heads, 2))
    expected = mixed + layer.mlp(layer.norm_mlp(mixed))
    torch.testing.assert_close(layer(x), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", [lambda: reversal_encoder(depth=3), lambda: gpt(10, depth=3)])
def test_transformers_are_cut_and_given_back(make):
    torch.manual_seed(0)
    network = make()
    x, _ = reversal_batch(4)
    expected = network.model.eval()(x)
    names = list(network.model.state_dict())
    model = bll.wrap(network.model, network.cuts, num_classes=10, example=x)
    assert [block.name for block in model.bll.blocks] == [*network.cuts, "output"]
    assert torch.equal(model.eval()(x), expected)
    assert list(bll.unwrap(model).state_dict()) == names


def test_the_encoder_learns_to_reverse():
    torch.manual_seed(0)
    model = reversal_encoder(5, depth=2, width=32, hidden=64).model
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(150):
        x, y = reversal_batch(32, 5)
        loss = functional.cross_entropy(model(x).flatten(0, 1), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = reversal_batch(200, 5)
    assert (model(x).argmax(2) == y).all(1).float().mean() > 0.95


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: reversal_encoder(depth=0), "depth: expected at least 1, got 0"),
        (
            lambda: reversal_encoder(depth=3, blocks=4),
            "blocks: expected 1 to 3 .the layers., got 4",
        ),
        (lambda: gpt(10, width=10, heads=4), "heads: expected a divisor of the width 10, got 4"),
        (lambda: reversal_batch(0), "size: expected at least 1, got 0"),
        (lambda: reversal_batch(1, 0), "symbols: expected at least 1, got 0"),
    ],
)
def test_refused(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_reversal_batches_are_permutations_of_their_generator():
    x, y = reversal_batch(50, 10, generator=torch.Generator().manual_seed(1))
    again, _ = reversal_batch(50, 10, generator=torch.Generator().manual_seed(1))
    assert torch.equal(x, again) and torch.equal(y, x.flip(1))
    assert torch.equal(x.sort(1).values, torch.arange(10).expand(50, 10))
    assert len({tuple(row) for row in x.tolist()}) == 50
