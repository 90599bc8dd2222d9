"""Weights on disk and optimiser groups."""

import os

import pytest
import torch
from torch import nn
from wrap_nets import ResNet, Tied, mlp, same, seeded, snapshot

import bll

X = torch.zeros(2, 1, 8, 8)
Y = torch.tensor([0, 2])
BLOCKS = ["layer1", "layer2"]


def wrapped(seed=0, example=X, **options):
    options = {"num_classes": 3, "example": example, "seed": seed, **options}
    return bll.wrap(seeded(ResNet, seed), BLOCKS, **options)


def doubled():
    return bll.wrap(seeded(ResNet, 1).double(), BLOCKS, num_classes=3, example=X.double())


@pytest.mark.parametrize("rule", ["bll", "bll-kl", "bp"])
@pytest.mark.parametrize("example", [X, None], ids=["example", "no example"])
def test_save_and_load(tmp_path, rule, example):
    model, other = wrapped(rule=rule), wrapped(1, example, rule=rule)
    path = tmp_path / "model.safetensors"
    bll.save(model, path)
    assert os.listdir(tmp_path) == ["model.safetensors"]
    bll.load(other, path)
    assert same(snapshot(model), snapshot(other))
    assert torch.equal(model.eval()(X, y=Y).loss, other.eval()(X, y=Y).loss)
    again = tmp_path / "again.safetensors"
    bll.save(other, again)
    assert path.read_bytes() == again.read_bytes()


def test_weights_alone(tmp_path):
    model, other = wrapped(), wrapped(1)
    bll.save(model, tmp_path / "m", feedback=False)
    table = other.bll.messages[0].table.clone()
    bll.load(other, tmp_path / "m", feedback=False)
    assert torch.equal(table, other.bll.messages[0].table)
    plain = seeded(ResNet, 2)
    bll.load(plain, tmp_path / "m")
    assert same(snapshot(plain), snapshot(bll.unwrap(model)))
    assert same(snapshot(plain), snapshot(bll.unwrap(other)))


def test_tied_weights_and_memory_layout_survive(tmp_path):
    model, other = seeded(Tied), seeded(Tied, 1)
    bll.save(model, tmp_path / "m")
    bll.load(other, tmp_path / "m")
    assert same(snapshot(model), snapshot(other))
    assert other.first.weight is other.second.weight
    conv = seeded(ResNet).to(memory_format=torch.channels_last)
    bll.save(conv, tmp_path / "c")
    bll.load(conv, tmp_path / "c")
    assert conv.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (mlp, r"names missing \['1.0.bias'.*unexpected"),
        (lambda: bll.wrap(seeded(ResNet, 1), BLOCKS[:1], num_classes=3, example=X), "unexpected"),
        (lambda: wrapped(1, num_classes=4), r"'bll.messages.0.table' expected .*\[4, 64\].*\[3, "),
        (lambda: wrapped(1, pool=("mean", 2)), r"'bll.messages.0.table' expected"),
        (doubled, "expected torch.float64"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(tmp_path, make, message):
    bll.save(wrapped(), tmp_path / "m")
    other = make()
    before = snapshot(other)
    with pytest.raises(ValueError, match=message):
        bll.load(other, tmp_path / "m")
    assert same(snapshot(other), before)


def test_saving_without_shapes(tmp_path):
    with pytest.raises(ValueError, match=r"'bll.messages.0.table' has no shape yet"):
        bll.save(wrapped(example=None), tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "m"
    bll.save(wrapped(), path)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="disk full"):
        bll.save(wrapped(1), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["m"]


@pytest.mark.parametrize("rule", ["bll", "bll-kl", "bp", "bp-deepsup"])
def test_every_parameter_is_in_one_group(rule):
    model = wrapped(rule=rule)
    groups = bll.param_groups(model, lr=0.1, weight_decay=0.5)
    listed = [id(p) for group in groups for p in group["params"]]
    assert sorted(listed) == sorted(id(p) for p in model.parameters())
    names = [group["name"] for group in groups]
    learns = rule in ("bll", "bp-deepsup")
    messages = ["layer1.message", "layer2.message"] if learns else []
    assert sorted(names) == sorted(["layer1", "layer2", "output", *messages])
    for group in groups:
        assert group["weight_decay"] == (0.0 if group["name"].endswith(".message") else 0.5)
    before = snapshot(model)
    optimiser = torch.optim.AdamW(groups)
    model(X + 1, y=Y).loss.backward()
    optimiser.step()
    moved = {n for n, v in snapshot(model).items() if not torch.equal(v, before[n])}
    assert {"stem.weight", "fc.weight"} <= moved
    assert ("bll.messages.0.table" in moved) == learns


def test_a_rate_per_block():
    model = wrapped()
    rates = {"layer1": 0.1, "layer2": 0.2, "output": 0.3}
    groups = bll.param_groups(model, lr=rates)
    assert {group["name"]: group["lr"] for group in groups}["layer2.message"] == 0.2
    with pytest.raises(ValueError, match="lr: expected one rate for each of"):
        bll.param_groups(model, lr={"layer1": 0.1})


def test_groups_need_a_ready_wrapped_model():
    with pytest.raises(ValueError, match="expected a wrapped model"):
        bll.param_groups(nn.Linear(2, 2), lr=0.1)
    with pytest.raises(ValueError, match=r"give bll\.wrap an example"):
        bll.param_groups(wrapped(example=None), lr=0.1)
