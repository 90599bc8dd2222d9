"""The published table's stage, tried without a GPU on tiny networks."""

from __future__ import annotations

import csv
import json
import shutil
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def table1(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gpu import table1

    # The smallest part of the table that has all four rules and two seeds.
    cell = "fashion-mnist-resnet18"
    monkeypatch.setattr(table1, "PUBLISHED", {cell: table1.PUBLISHED[cell]})
    before = torch.get_num_threads()
    yield table1
    torch.set_num_threads(before)


def stage(tmp_path: Path, **settings):
    from bench.gpu.record import Record
    from bench.gpu.run import Run
    from bench.gpu.work import perform

    settings = {"deadline": time.monotonic() + 1000, "dry": True, **settings}
    record = Record(tmp_path)
    assert perform("table1", Run(record, full=True, **settings)) == 0
    found = record.stages["table1"]
    return found["result"], found["note"]


def rows(tmp_path: Path) -> list[dict[str, str]]:
    with (tmp_path / "table1-dry.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_dry_run_fills_the_table(tmp_path, table1):
    passed, note = stage(tmp_path)
    assert passed == "passed" and note == "8 of 8 runs finished"
    found = rows(tmp_path)
    assert {(row["rule"], row["seed"]) for row in found} == {
        (rule, seed) for rule in ("bp", "fa", "pred-sim", "bll") for seed in ("0", "1")
    }
    for row in found:
        published = {"bp": 92.7, "fa": 87.9, "pred-sim": 93.9, "bll": 94.2}[row["rule"]]
        assert float(row["published"]) == published and float(row["test_accuracy"]) > 5.0
        assert row["optimizer"] == "sgd" and row["crop"] == "2" and row["flip"] == "True"
    assert "fashion-mnist-resnet18-bll seed-1: epoch 1 of 1" in (tmp_path / "gpu.log").read_text()


@pytest.mark.slow
def test_a_second_call_goes_on_in_the_middle_of_a_run(tmp_path, table1, monkeypatch):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    monkeypatch.setattr(table1, "SEEDS", (0,))
    assert stage(whole) == ("passed", "4 of 4 runs finished")

    class Clock:
        """Every look at it takes a second, so the deadline falls between two steps."""

        now = 0.0

        def monotonic(self) -> float:
            self.now += 1
            return self.now

    monkeypatch.setattr(table1, "time", Clock())
    passed, note = stage(parts, deadline=30 + table1._MARGIN)
    assert passed == "not finished"
    assert note == "1 of 4 runs finished; the same command goes on"
    half = parts / "table1-dry" / "fashion-mnist-resnet18-fa" / "seed-0"
    assert (half / "checkpoint" / "index.json").is_file() and not (half / "summary.json").exists()
    # What lies deep in the folder may be lost on the way to the next call; the archive holds it.
    shutil.rmtree(parts / "table1-dry")
    for _ in range(9):
        deadline = table1.time.now + 30 + table1._MARGIN
        passed, note = stage(parts, deadline=deadline)
    assert passed == "passed" and note == "4 of 4 runs finished"
    assert (parts / "table1-dry-finished.tar").is_file()
    assert not (parts / "table1-dry-begun.tar").exists()
    for path in whole.rglob("model.safetensors"):
        other = parts / path.relative_to(whole)
        if "-bp" in str(path):
            # Finished before the folder was lost: its row is all that is left of it.
            assert not other.exists() and (other.parent / "summary.json").is_file()
            continue
        assert other.read_bytes() == path.read_bytes(), "a run in parts is another run"


def test_a_missing_file_is_named_and_does_not_hide_the_rest(tmp_path, monkeypatch, table1):
    here = tmp_path / "data"
    here.mkdir()
    passed, note = stage(tmp_path / "out", dry=False, data_dirs=(str(here),))
    assert passed == "FAILED"
    assert "0 of 8 runs finished; fashion-mnist-resnet18: " in note
    assert f"train-images-idx3-ubyte.gz: no such file in {here}" in note
    assert (tmp_path / "out" / "table1.csv").read_text().count("\n") == 1, "more than the head"


def test_the_order_of_the_cells_and_the_recipes(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gpu import table1
    from bench.gpu.stages import ON_REQUEST

    assert list(table1.PUBLISHED) == [
        "fashion-mnist-resnet18", "cifar-10-resnet50", "fashion-mnist-resnet50",
    ]  # fmt: skip
    for cell, rules in table1.PUBLISHED.items():
        for rule in rules:
            options = table1._options(f"{cell}-{rule}", ("a", "b"), 7, dry=False)
            assert options["data_dirs"] == ("a", "b") and options["epochs"] == 7
            assert options["device"] == "cuda" and options["dtype"] == "bfloat16"
    assert {"table1"} == ON_REQUEST


@pytest.mark.slow
def test_another_number_of_epochs_is_not_mixed_in(tmp_path, table1, monkeypatch):
    monkeypatch.setattr(table1, "SEEDS", (0,))

    class Late:
        calls = 0

        def monotonic(self) -> float:
            self.calls += 1
            return float(self.calls)

    monkeypatch.setattr(table1, "time", Late())
    stage(tmp_path, deadline=5 + table1._MARGIN)
    index = next(tmp_path.rglob("index.json"))
    assert json.loads(index.read_text())["record"]["config"]["epochs"] == 1
    monkeypatch.setattr(table1, "_DRY", {**table1._DRY, "epochs": 2})
    table1.time.calls = -10_000
    passed, note = stage(tmp_path, deadline=5.0)
    assert passed == "FAILED" and "epochs: the run in --out has 1, got 2" in note
