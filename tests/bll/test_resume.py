"""A stopped and continued run equals an uninterrupted one, bit by bit."""

from __future__ import annotations

import copy
import dataclasses
import json
import random

import pytest
import torch
from image_files import image_data
from torch import nn

from bll.models import Network
from bll.training import run as run_module
from bll.training import trainer as trainer_module
from bll.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from bll.training.config import TrainConfig
from bll.training.run import Run
from bll.training.snapshot import capture, restore
from bll.training.trainer import Trainer

OPTIONS = {"dataset": "digits", "width": 16, "blocks": 3, "epochs": 3, "batch_size": 16}
CONFIG = TrainConfig(**OPTIONS)
STEPS = 3 * 4


def dropout_network(name, image_shape, num_classes, *, blocks, width):
    """Dropout consumes the random state; batch norm keeps buffers."""
    layers = [nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3)]
    second = [nn.Linear(16, 16), nn.ReLU(), nn.Dropout(0.3)]
    model = nn.Sequential(nn.Sequential(*layers), nn.Sequential(*second), nn.Linear(16, 3))
    return Network(model, ("0", "1"))


@pytest.fixture(autouse=True)
def small_data(monkeypatch):
    monkeypatch.setattr(run_module, "load_dataset", lambda name, directories: image_data())


class StopAfter:
    """Observer and stop question in one: a stop is asked for after ``steps`` more steps."""

    def __init__(self, steps):
        self.left = steps

    def on_step(self, trainer):
        self.left -= 1

    def on_epoch(self, trainer):
        pass

    def __call__(self):
        return self.left <= 0


def go(run, steps=10**9):
    stop = StopAfter(steps)
    return run.train(stop, stop)


def same_state(first, second):
    (tensors, record), (others, other_record) = capture(first), capture(second)
    assert tensors.keys() == others.keys()
    for name in tensors.keys() - {"timer/milliseconds"}:
        assert torch.equal(tensors[name], others[name]), name
    for plain in (record, other_record):
        for epoch in plain["history"]:
            epoch["seconds"] = epoch["test_seconds"] = None
        plain["epoch_seconds"] = None
    assert json.dumps(record, sort_keys=True) == json.dumps(other_record, sort_keys=True)


def copied_state(trainer):
    tensors, record = capture(trainer)
    return {name: tensor.clone() for name, tensor in tensors.items()}, copy.deepcopy(record)


def interrupted_twice(out, options, first, second):
    run = Run.begin(out, options)
    assert not go(run, first)
    run = Run.resume(out, {})
    assert not go(run, second)
    run = Run.resume(out, {})
    assert go(run)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("stops", [(1, 1), (3, 1), (4, 4), (5, 6), (7, 4), (11, 1)])
@pytest.mark.parametrize(
    "how",
    [{"rule": "bll"}, {"rule": "bp"}, {"executor": "pipelined", "depth": 2, "micro_batches": 2}],
    ids=["bll", "bp", "pipelined"],
)
def test_continued_run_equals_the_whole_one(tmp_path, monkeypatch, how, stops):
    monkeypatch.setattr(trainer_module, "build_network", dropout_network)
    options = {**OPTIONS, **how}
    whole = Run.begin(tmp_path / "whole", options)
    assert go(whole)
    parts = interrupted_twice(tmp_path / "parts", options, *stops)
    same_state(whole.trainer, parts.trainer)
    for run in (whole, parts):
        run.finish()
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


@pytest.mark.parametrize("model", ["mlp", "resnet10"])
@pytest.mark.parametrize("family", ["gaussian", "bernoulli"])
def test_continued_reference_networks(tmp_path, model, family):
    options = {**OPTIONS, "model": model, "family": family, "width": 4}
    whole = Run.begin(tmp_path / "whole", options)
    assert go(whole)
    same_state(whole.trainer, interrupted_twice(tmp_path / "parts", options, 3, 4).trainer)


@pytest.mark.slow
def test_batched_blocks_train_and_continue(tmp_path):
    """Three equal blocks of five as one step: near the pipelined run, resumed to the bit."""
    options = {**OPTIONS, "blocks": 5, "width": 6, "executor": "pipelined", "micro_batches": 4}
    # Rounding grows in Adam, whose steps do not depend on the size of a gradient.
    options |= {"optimizer": "sgd", "dtype": "float64", "lr": 0.05}
    batched = {**options, "batched_blocks": True}
    whole = Run.begin(tmp_path / "whole", batched)
    assert list(whole.trainer.executor.stacked) == [1, 2, 3]
    assert go(whole)
    parts = interrupted_twice(tmp_path / "parts", batched, 3, 4)
    same_state(whole.trainer, parts.trainer)
    plain = Run.begin(tmp_path / "plain", options)
    assert go(plain)
    for name, value in plain.trainer.model.state_dict().items():
        mine = whole.trainer.model.state_dict()[name]
        torch.testing.assert_close(mine, value, rtol=1e-8, atol=1e-8)
    summary = whole.finish()
    assert summary["batched_blocks"] and "reordered arithmetic" in summary["certificate"][1]


def test_stop_during_the_evaluation(tmp_path, monkeypatch):
    whole = Run.begin(tmp_path / "whole", OPTIONS)
    assert go(whole)
    run = Run.begin(tmp_path / "parts", OPTIONS)
    monkeypatch.setattr(trainer_module, "evaluate", lambda *_, **__: None)
    assert not go(run)
    monkeypatch.undo()
    monkeypatch.setattr(run_module, "load_dataset", lambda name, directories: image_data())
    run = Run.resume(tmp_path / "parts", {})
    assert run.trainer.sampler.epoch_is_over and not run.trainer.history
    assert go(run)
    same_state(whole.trainer, run.trainer)


def test_every_stop_point_of_one_run(tmp_path):
    """State after step n, saved and loaded, gives the state after step n + 1 of the whole run."""
    reference = Run.begin(tmp_path / "reference", OPTIONS)
    states = [copied_state(reference.trainer)]
    for _ in range(STEPS - 1):
        assert not go(reference, 1)
        states.append(copied_state(reference.trainer))
    for step in random.Random(0).sample(range(STEPS - 1), 5):
        save_checkpoint(tmp_path / "x" / "checkpoint", *states[step])
        run = Run.resume(tmp_path / "x", {})
        assert run.trainer.steps_done == step
        go(run, 1)
        tensors, _ = capture(run.trainer)
        expected, _ = states[step + 1]
        assert all(
            torch.equal(tensors[name], expected[name])
            for name in expected.keys() - {"timer/milliseconds"}
        )


def test_finished_run_can_be_resumed_and_changes_nothing(tmp_path):
    run = Run.begin(tmp_path, OPTIONS)
    assert go(run)
    run.finish()
    before = (tmp_path / "model.safetensors").read_bytes()
    again = Run.resume(tmp_path, {"epochs": 3})
    assert again.trainer.is_finished and go(again)
    again.finish()
    assert (tmp_path / "model.safetensors").read_bytes() == before
    same_state(run.trainer, again.trainer)


def test_options_of_a_resumed_run(tmp_path):
    go(Run.begin(tmp_path, OPTIONS), 2)
    for option, value in {"epochs": 4, "seed": 1, "lr": 0.5, "rule": "bp", "threads": 2}.items():
        with pytest.raises(ValueError, match=f"^{option}: the run in --out has .*, got {value}"):
            Run.resume(tmp_path, {option: value})
    run = Run.resume(tmp_path, {**OPTIONS, "data_dirs": ("elsewhere",)})
    assert run.trainer.config.data_dirs == ("elsewhere",)
    assert dataclasses.replace(run.trainer.config, data_dirs=()) == CONFIG


def test_a_run_is_not_replaced_by_accident(tmp_path):
    go(Run.begin(tmp_path, OPTIONS), 2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="already holds a run"):
        Run.begin(tmp_path, OPTIONS)
    with pytest.raises(ValueError, match="batch_size"):
        Run.begin(tmp_path, {**OPTIONS, "batch_size": 10**6}, overwrite=True)
    assert Run.resume(tmp_path, {}).trainer.steps_done == 2, "a refused run removes nothing"
    Run.begin(tmp_path, OPTIONS, overwrite=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        Run.resume(tmp_path, {})
    assert (tmp_path / "notes.txt").read_text() == "mine"


def _without(name):
    return lambda tensors, record: tensors.pop(name)


def _wrong_shape(tensors, record):
    name = next(name for name in tensors if name.startswith("model/") and "weight" in name)
    tensors[name] = tensors[name][:1].clone()


def _foreign_model(tensors, record):
    tensors["model/other.weight"] = torch.zeros(3)


def _no_config(tensors, record):
    del record["config"]


def _unknown_option(tensors, record):
    record["config"]["colour"] = "red"


def _bad_position(tensors, record):
    record["sampler_position"] = 99


def _no_position(tensors, record):
    del record["sampler_position"]


@pytest.mark.parametrize(
    "change",
    [
        _without("sampler/generator"),
        _without("random/cpu"),
        _without("losses/sums"),
        _wrong_shape,
        _foreign_model,
        _no_config,
        _unknown_option,
        _bad_position,
        _no_position,
    ],
)
def test_foreign_checkpoints_are_refused(tmp_path, change):
    go(Run.begin(tmp_path, OPTIONS), 2)
    tensors, record = load_checkpoint(tmp_path / "checkpoint")
    change(tensors, record)
    save_checkpoint(tmp_path / "checkpoint", tensors, record)
    with pytest.raises(ValueError, match=r"checkpoint|position"):
        Run.resume(tmp_path, {})


def test_restore_is_of_the_same_network_only():
    first = Trainer(CONFIG, image_data())
    other = Trainer(dataclasses.replace(CONFIG, width=8), image_data())
    with pytest.raises(CheckpointError, match="checkpoint"):
        restore(other, *capture(first))
