"""The parts of a training run, and that it learns."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import math

import pytest
import safetensors.torch
import torch
from image_files import image_data
from torch import nn

from bll.data import Split
from bll.training.config import TrainConfig
from bll.training.curves import draw_curves
from bll.training.evaluation import evaluate
from bll.training.history import EpochRecord
from bll.training.meters import LossMeter, StepTimer
from bll.training.outputs import metrics_csv, summary, write_results
from bll.training.schedule import one_cycle
from bll.training.trainer import Trainer, TrainingError

PATTERNS = TrainConfig(dataset="digits", width=16, blocks=3, epochs=2, batch_size=16, lr=0.01)
SUMMARY_FIELDS = (
    "dataset model params rule family blocks executor depth device dtype seed epochs "
    "test_accuracy history step_ms_median samples_per_s peak_memory_bytes energy_j backends "
    "versions commit"
)


class Silent:
    def on_step(self, trainer):
        pass

    def on_epoch(self, trainer):
        pass


def never():
    return False


def trained(config=PATTERNS, data=None):
    trainer = Trainer(config, data or image_data())
    assert trainer.run(Silent(), never)
    return trainer


@pytest.mark.parametrize("rule", ["bll", "bll-kl", "bp", "bp-deepsup", "pred-sim", "dfa", "fa"])
def test_rules_learn_easy_images(rule):
    trainer = trained(dataclasses.replace(PATTERNS, rule=rule, epochs=12))
    assert trainer.history[-1].test_accuracy > 95.0
    assert trainer.history[-1].train_loss < trainer.history[0].train_loss


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("model", ["mlp", "resnet10"])
def test_dtypes(model, dtype):
    config = dataclasses.replace(PATTERNS, model=model, dtype=dtype, blocks=2, epochs=12)
    # Not 8x8: with AMX, torch's bfloat16 convolution of stride 2 on a 1x1 map has random gradients.
    trainer = trained(config, image_data(shape=(1, 16, 16)))
    expected = torch.float64 if dtype == "float64" else torch.float32
    assert {p.dtype for p in trainer.model.parameters()} == {expected}
    assert trainer.history[-1].test_accuracy > 60.0


def test_bfloat16_on_the_executor_learns_as_in_the_loop():
    config = dataclasses.replace(PATTERNS, dtype="bfloat16", blocks=2, epochs=12)
    loop = trained(config)
    overlapped = trained(dataclasses.replace(config, executor="pipelined"))
    assert set(overlapped.executor.paths.values()) == {"traced"}
    assert abs(overlapped.history[-1].test_accuracy - loop.history[-1].test_accuracy) < 5.0
    assert {p.dtype for p in overlapped.model.parameters()} == {torch.float32}


def test_on_a_gpu_s_executor_the_rate_lies_in_memory(monkeypatch):
    trainer = Trainer(dataclasses.replace(PATTERNS, executor="pipelined"), image_data())
    monkeypatch.setattr(trainer, "device", torch.device("cuda"))
    made = torch.tensor
    # There is no GPU: its tensors lie on the CPU.
    monkeypatch.setattr(torch, "tensor", lambda value, dtype, device: made(value, dtype=dtype))
    trainer._set_rate(0.5)
    rates = [group["lr"] for group in trainer.optimizer.param_groups]
    trainer._set_rate(0.25)
    groups = trainer.optimizer.param_groups
    # One for all: blocks are stepped together only where their options are equal.
    assert all(group["lr"] is rate is rates[0] for group, rate in zip(groups, rates, strict=True))
    assert float(rates[0]) == 0.25


def test_same_seed_same_bits_and_another_seed_others():
    first, second = trained(), trained()
    other = trained(dataclasses.replace(PATTERNS, seed=1))
    states = [trainer.model.state_dict() for trainer in (first, second, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not all(torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_families():
    assert trained().family == "gaussian-precision"
    assert trained(dataclasses.replace(PATTERNS, family="bernoulli")).family == "bernoulli"
    assert Trainer(dataclasses.replace(PATTERNS, rule="bp"), image_data()).family is None


def test_diverged_training_is_an_error_and_not_a_result():
    with pytest.raises(TrainingError, match=r"epoch 1 is .*diverged"):
        data = image_data()
        trainer = Trainer(PATTERNS, data)
        trainer.train.images[3] = math.nan
        trainer.run(Silent(), never)
    assert trainer.history == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 65}, "batch_size: expected 1 to 64"),
        ({"device": "cuda:99"}, "device: cuda:99 is not there"),
        ({"device": "meta"}, "device: expected cpu, cuda or cuda:N, got 'meta'"),
        ({"device": "toaster"}, "device: expected cpu, cuda or cuda:N, got 'toaster'"),
        ({"model": "resnet10", "blocks": 9}, "blocks: expected 1 to 4"),
    ],
)
def test_options_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        Trainer(dataclasses.replace(PATTERNS, **change), image_data())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": "mnist"}, "dataset: expected one of"),
        ({"model": "vgg"}, "model: expected one of"),
        ({"rule": "hebb"}, "rule: expected one of"),
        ({"family": "cauchy"}, "cauchy"),
        ({"rule": "bp", "family": "gaussian"}, "family"),
        (
            {"executor": "wide"},
            "executor: expected one of sequential, pipelined, graphed, auto, di",
        ),
        ({"executor": "graphed"}, "executor: graphed needs --device cuda, got 'cpu'"),
        ({"depth": 2}, "depth, micro-batches: need --executor pipelined"),
        ({"micro_batches": 2}, "depth, micro-batches: need --executor pipelined"),
        ({"batched_blocks": True}, "batched-blocks: needs --executor pipelined and 2 or more"),
        (
            {"executor": "pipelined", "batched_blocks": True},
            "batched-blocks: .* no two blocks are in flight; got pipelined, 1",
        ),
        ({"executor": "pipelined", "depth": 9}, "depth: expected at most 3 blocks, got 9"),
        ({"executor": "pipelined", "depth": 0}, "depth: expected at least 1, got 0"),
        ({"executor": "pipelined", "micro_batches": 7}, "micro-batches: expected a divisor"),
        ({"executor": "pipelined", "rule": "bp"}, "executor: rule 'bp' needs gradients of later"),
        ({"executor": "pipelined", "rule": "dfa"}, "executor: rule 'dfa' reads error, which other"),
        ({"executor": "distributed", "dtype": "bfloat16"}, "dtype: --distributed runs in float32"),
        ({"dtype": "int8"}, "dtype: expected one of"),
        ({"blocks": 0}, "blocks: expected at least 1, got 0"),
        ({"epochs": 0}, "epochs: expected at least 1, got 0"),
        ({"stop_at": 0.0}, r"stop-at: expected a percentage in \(0, 100\], got 0"),
        ({"stop_at": math.nan}, "stop-at: expected a percentage"),
        ({"batch_size": 0}, "batch-size: expected at least 1, got 0"),
        ({"threads": -1}, "threads: expected at least 0, got -1"),
        ({"width": 0}, "width: expected at least 1, got 0"),
        ({"seed": -1}, "seed: expected 0 to"),
        ({"lr": 0.0}, "lr: expected a positive number, got 0"),
        ({"lr": math.inf}, "lr: expected a positive number, got inf"),
        ({"lr": math.nan}, "lr: expected a positive number, got nan"),
    ],
)
def test_config_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(PATTERNS, **change)


def test_config_round_trip():
    config = dataclasses.replace(PATTERNS, data_dirs=("a", "b"))
    assert TrainConfig.from_record(json.loads(json.dumps(config.to_record()))) == config
    with pytest.raises(ValueError, match="these differ: colour"):
        TrainConfig.from_record({**config.to_record(), "colour": "red"})


def test_one_cycle_rises_to_its_peak_and_falls():
    rates = [one_cycle(step, 100, 0.5) for step in range(100)]
    assert rates[0] == pytest.approx(0.5 / 25)
    assert max(rates) == rates[29] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 / 2.5e5)
    assert rates[:30] == sorted(rates[:30])
    assert rates[29:] == sorted(rates[29:], reverse=True)


@pytest.mark.parametrize("total", [10, 37, 1500])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.3, total_steps=total, cycle_momentum=False
    )
    for step in range(total):
        assert one_cycle(step, total, 0.3) == pytest.approx(theirs.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        if step < total - 1:
            theirs.step()


@pytest.mark.parametrize("total", [1, 2, 3, 4])
def test_one_cycle_of_very_short_runs(total):
    assert all(0 < one_cycle(step, total, 0.1) <= 0.1 for step in range(total))


@pytest.mark.parametrize("step", [-1, 5])
def test_one_cycle_refuses(step):
    with pytest.raises(ValueError, match=f"step: expected 0 to 4, got {step}"):
        one_cycle(step, 5, 0.1)


class Fixed(nn.Module):
    """Says class ``int(x[0])`` and remembers in which mode it was asked."""

    def forward(self, x):
        self.asked_in_training = self.training
        return nn.functional.one_hot(x[:, 0].long(), 3).float()


@pytest.mark.parametrize("size", [1, 999, 1000, 2001])
def test_evaluate_counts_every_image(size):
    labels = torch.arange(size) % 3
    said = labels.clone()
    said[:: max(size // 5, 1)] = (said[:: max(size // 5, 1)] + 1) % 3
    model = Fixed()
    accuracy = evaluate(model, Split(said[:, None].float(), labels))
    assert accuracy == pytest.approx(100.0 * (said == labels).float().mean().item())
    assert not model.asked_in_training and model.training
    assert evaluate(model, Split(said[:, None].float(), labels), should_stop=lambda: True) is None
    assert model.training


def test_loss_meter_means():
    meter = LossMeter(torch.device("cpu"))
    assert meter.means() == (0.0, {})
    for value in (1.0, 2.0, 6.0):
        meter.add(torch.tensor(2 * value), {"a": torch.tensor(value), "b": torch.tensor(value)})
    assert meter.means() == (6.0, {"a": 3.0, "b": 3.0})
    copy = LossMeter(torch.device("cpu"))
    copy.restore(meter.names, meter.steps, meter.sums.clone())
    assert copy.means() == meter.means()
    meter.reset()
    assert meter.means() == (0.0, {"a": 0.0, "b": 0.0})


def test_step_timer_counts_steps():
    timer = StepTimer(torch.device("cpu"))
    timer.restore([3.0])
    for _ in range(2):
        timer.start()
        timer.stop()
    times = timer.milliseconds()
    assert len(times) == 3 and times[0] == 3.0 and min(times) >= 0.0
    assert timer.milliseconds() == times


def records():
    return [
        EpochRecord(n, 3.0 / n, 50.0 + n, 0.5, 0.25, {"first": 2.0 / n, "output": 1.0 / n})
        for n in (1, 2, 3)
    ]


def test_metrics_table():
    rows = list(csv.DictReader(io.StringIO(metrics_csv(records()).decode())))
    assert [float(row["loss/first"]) for row in rows] == [2.0, 1.0, 2.0 / 3]
    assert [int(row["epoch"]) for row in rows] == [1, 2, 3]
    assert [float(row["test_accuracy"]) for row in rows] == [51.0, 52.0, 53.0]


def test_curves_are_a_picture_of_the_given_history():
    picture = draw_curves(records(), "title")
    assert picture.startswith(b"\x89PNG") and len(picture) > 5_000
    assert draw_curves(records()[:1], "one epoch").startswith(b"\x89PNG")
    assert draw_curves(records()[:2], "title") != picture


def test_summary_and_weights(tmp_path):
    trainer = trained()
    results = write_results(tmp_path, trainer)
    assert json.loads((tmp_path / "summary.json").read_text()) == results
    assert summary(trainer).keys() == results.keys()
    assert set(SUMMARY_FIELDS.split()) <= set(results)
    assert (results["energy_j"] is None) == bool(results["energy_reason"])
    assert results["test_accuracy"] == results["history"][-1]["test_accuracy"]
    assert len(results["history"]) == results["epochs"] == 2
    assert results["samples_per_s"] == pytest.approx(
        2 * 64 / sum(record["seconds"] for record in results["history"])
    )
    assert results["peak_memory_bytes"] > 50e6
    weights = safetensors.torch.load_file(tmp_path / "model.safetensors")
    assert weights and not any(name.startswith("bll.") for name in weights)
    state = trainer.model.state_dict()
    assert all(torch.equal(weights[name], state[name]) for name in weights)
    assert any(name.startswith("bll.") for name in state), "the rule should have learned state"
    trainable = {name for name, _ in trainer.model.named_parameters()}
    assert results["params"] == sum(x.numel() for n, x in weights.items() if n in trainable)


def test_a_run_stops_after_the_epoch_that_reaches_the_accuracy():
    whole = trained(dataclasses.replace(PATTERNS, epochs=12, schedule="constant"))
    accuracies = [record.test_accuracy for record in whole.history]
    target = accuracies[0] + 1
    first = next(n for n, accuracy in enumerate(accuracies, 1) if accuracy >= target)
    assert 1 < first < 12
    stopping = dataclasses.replace(whole.config, stop_at=target)
    stopped = trained(stopping)
    assert [record.test_accuracy for record in stopped.history] == accuracies[:first]
    results = summary(stopped)
    assert (results["epochs"], results["epochs_trained"], results["reached"]) == (12, first, True)
    never_there = summary(trained(dataclasses.replace(PATTERNS, lr=1e-9, stop_at=99.9)))
    assert (never_there["epochs_trained"], never_there["reached"]) == (2, False)


@pytest.mark.parametrize("model", ["mlp", "resnet10"])
def test_pipelined_runs_are_the_same_at_every_depth(model):
    """And close to the ordinary loop, which adds up its gradients in another order."""
    small = {"model": model, "width": 4, "epochs": 1, "batch_size": 16}
    config = dataclasses.replace(PATTERNS, **small)
    trained = []
    for depth in (1, 2, 3):
        trainer = Trainer(
            dataclasses.replace(config, executor="pipelined", depth=depth), image_data()
        )
        assert trainer.run(Silent(), lambda: False)
        assert trainer.depth == depth
        trained.append(trainer)
    auto = Trainer(dataclasses.replace(config, executor="auto"), image_data())
    assert auto.run(Silent(), lambda: False)
    trained.append(auto)
    results = summary(auto)
    assert results["executor"] == "auto"
    assert results["executor_choice"] == str(auto.executor.choice)
    assert results["certificate"][0].startswith(f"{auto.executor.blocks[0].name}: exact (")
    ordinary = Trainer(config, image_data())
    assert ordinary.run(Silent(), lambda: False)
    want = trained[0].model.state_dict()
    for trainer in trained[1:]:
        for name, tensor in trainer.model.state_dict().items():
            assert torch.equal(tensor, want[name]), name
    for name, tensor in ordinary.model.state_dict().items():
        torch.testing.assert_close(tensor, want[name], rtol=2e-2, atol=1e-3)
