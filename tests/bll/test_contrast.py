"""Contrastive batches, and predictions by goodness."""

import pytest
import torch
from torch import nn
from wrap_nets import ResNet, seeded

import bll
from bll.cli import main
from bll.rules import get_rule


def data(seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 1, 8, 8, generator=generator)
    return x, torch.randint(0, 3, (12,), generator=generator)


def image_net(rule="ff", cuts=("layer1", "layer2")):
    return bll.wrap(seeded(ResNet), list(cuts), num_classes=3, rule=rule, example=data()[0])


def shown(x, label):
    """The first three pixels of each image written over, pixel by pixel."""
    x = x.clone()
    for row, chosen in zip(x, label, strict=True):
        largest = row.max().item()
        for index in range(3):
            row[0, 0, index] = largest if index == chosen else 0.0
    return x


def test_triples_of_right_wrong_and_none():
    x, y = data()
    model = image_net()
    rows, labels = bll.contrast(model, x, y)
    assert rows.shape == (36, 1, 8, 8) and labels.shape == (36,)
    assert torch.equal(labels.view(12, 3), torch.stack([y * 0 - 100, y * 0 - 100, y], 1))
    assert torch.equal(rows[0::3], shown(x, y))
    assert torch.equal(rows[2::3], x)
    wrong = rows[1::3].flatten(1)[:, :3].argmax(1)
    assert not (wrong == y).any() and torch.equal(rows[1::3], shown(x, wrong))
    again = [bll.contrast(model, x, y)[0] for _ in range(8)]
    assert any(not torch.equal(rows, other) for other in again), "wrong labels are drawn"


def test_triples_keep_the_memory_format():
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    y = torch.tensor([0, 2, 1, 0])
    model = image_net()
    torch.manual_seed(0)
    rows, _ = bll.contrast(model, x, y)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    torch.manual_seed(0)
    assert torch.equal(rows, bll.contrast(model, x.contiguous(), y)[0])
    assert bll.contrast(model, x.contiguous(), y)[0].is_contiguous()


def test_an_overlay_of_another_shape_is_refused():
    x, y = data()
    rule = get_rule("ff", overlay=lambda inputs, labels, classes: inputs[:, :, :1])
    model = bll.wrap(seeded(ResNet), ["layer1"], num_classes=3, rule=rule, example=x)
    with pytest.raises(ValueError, match=r"shape \[12, 1, 8, 8\], it returned \[12, 1, 1, 8\]"):
        bll.contrast(model, x, y)


def test_other_rules_learn_from_what_is_given():
    x, y = data()
    given = bll.contrast(image_net("bll"), x, y)
    assert given[0] is x and given[1] is y


def test_the_last_block_learns_from_the_plain_inputs():
    x, y = data()
    model = image_net()
    rows, labels = bll.contrast(model, x, y)
    out = model(rows, y=labels)
    expected = nn.functional.cross_entropy(out.logits[2::3], y)
    torch.testing.assert_close(out.block_losses["output"], expected)


@pytest.mark.parametrize("cuts", [("layer1", "layer2"), ("layer1",)])
def test_the_prediction_is_the_class_that_seems_best(cuts):
    x, _ = data()
    model = image_net(cuts=cuts).eval()
    with torch.no_grad():
        expected = []
        for label in range(3):
            first = model.layer1(torch.relu(model.stem(shown(x, [label] * 12))))
            feature = model.layer2(first) if len(cuts) == 2 else first
            expected.append(feature.flatten(1).square().mean(1))
        torch.testing.assert_close(bll.predict(model, x), torch.stack(expected, 1))
    with pytest.raises(ValueError, match="inputs: rule 'ff' predicts from one tensor"):
        bll.predict(model, x=x)


def corner(inputs, labels, num_classes):
    """An overlay of one's own."""
    shown = inputs.clone()
    shown[:, 0, -1, -1] = labels.to(inputs.dtype)
    return shown


def test_an_overlay_of_ones_own():
    x, y = data()
    model = image_net(get_rule("ff", overlay=corner))
    rows, _ = bll.contrast(model, x, y)
    assert torch.equal(rows[0::3], corner(x, y, 3))
    assert model.bll.describe()["overlay"] == "corner"


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda m, x, y: (bll.unwrap(m), x, y), ValueError, "expected a wrapped model"),
        (lambda m, x, y: (m, x.long(), y), TypeError, "floating-point inputs, got dtype"),
        (lambda m, x, y: (m, [x], y), TypeError, "inputs: expected a tensor, got list"),
        (lambda m, x, y: (m, x, y[:5]), ValueError, r"labels: expected one per sample, .*\[12\]"),
        (lambda m, x, y: (m, x, y.float()), ValueError, "expected integer class labels"),
        (lambda m, x, y: (m, x[:, :, :1, :2], y), ValueError, "at least 3 elements per sample"),
    ],
)
def test_refusals(change, error, match):
    with pytest.raises(error, match=match):
        bll.contrast(*change(image_net(), *data()))


@pytest.mark.parametrize(("size", "error"), [(10, ValueError), (12, RuntimeError)])
def test_a_batch_of_no_triples_is_refused(size, error):
    x, y = data()
    with pytest.raises(error, match=r"labels: rule 'ff' expected the triples that bll\.contrast"):
        image_net()(x[:size], y=y[:size])


@pytest.mark.parametrize("executor", ["sequential", "pipelined"])
def test_bll_train_contrasts(tmp_path, executor):
    words = "train --dataset digits --rule ff --width 32 --blocks 3 --epochs 6 --batch-size 48"
    options = ["--executor", executor, "--quiet", "--out", str(tmp_path)]
    options += ["--micro-batches", "2"] if executor == "pipelined" else []
    before = torch.get_num_threads()
    try:
        assert main([*words.split(), *options]) == 0
    finally:
        torch.set_num_threads(before)
    last = (tmp_path / "metrics.csv").read_text().splitlines()[-1]
    assert float(last.split(",")[2]) > 70
