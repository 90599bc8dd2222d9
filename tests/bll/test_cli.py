"""The command line: what it writes, how it refuses, and how it stops."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from shlex import split

import pytest
import torch
from image_files import write_batch_set, write_idx_set

from bll.cli import main

FAST = ["train", "--dataset", "digits", "--epochs", "1", "--width", "8", "--blocks", "2"]
FILES = {"summary.json", "metrics.csv", "model.safetensors", "curves.png", "checkpoint"}


@pytest.fixture(autouse=True)
def _own_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def refused(arguments, capsys, code=2):
    """Run a command that must fail; its one line on standard error."""
    assert main([str(word) for word in arguments]) == code
    captured = capsys.readouterr()
    assert captured.err.startswith("bll: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err
    return captured.err


def test_digits_reach_their_accuracy(tmp_path, capsys):
    words = split("train --dataset digits --epochs 20 --batch-size 64 --seed 0 --out")
    assert main([*words, str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["test_accuracy"] >= 95.0
    assert {path.name for path in tmp_path.iterdir()} == FILES
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["test_accuracy"]) == summary["test_accuracy"]
    output = capsys.readouterr()
    assert f"{summary['test_accuracy']:.2f} %" in output.out and "test accuracy" in output.out
    assert output.err.count("epoch ") == 20


def test_quiet_prints_nothing(tmp_path, capsys):
    assert main([*FAST, "--quiet", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr() == ("", "")


def test_every_option_reaches_the_run(tmp_path):
    words = split(
        "train --dataset digits --model resnet10 --blocks 3 --rule bll --family bernoulli --width 4"
        " --executor sequential --epochs 1 --batch-size 300 --lr 0.003 --seed 11 --device cpu"
        " --dtype float64 --threads 1 --schedule cosine --optimizer sgd --momentum 0.5"
        " --weight-decay 0.001 --label-smoothing 0.1 --crop 1 --flip --quiet --out"
    )
    assert main([*words, str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    expected = {
        "model": "resnet10", "blocks": 3, "rule": "bll", "family": "bernoulli", "width": 4,
        "executor": "sequential", "epochs": 1, "batch_size": 300, "lr": 0.003, "seed": 11,
        "device": "cpu", "dtype": "float64", "threads": 1, "schedule": "cosine",
        "optimizer": "sgd", "momentum": 0.5, "weight_decay": 0.001, "label_smoothing": 0.1,
        "crop": 1, "flip": True,
    }  # fmt: skip
    assert {name: summary[name] for name in expected} == expected


def test_blocks_may_be_named(tmp_path):
    words = split(
        "train --dataset digits --model resnet10 --width 2 --epochs 1 --batch-size 300 --quiet"
        " --blocks stem,stage2,stage3 --out"
    )
    assert main([*words, str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["blocks"] == 4 and summary["cuts"] == ["stem", "stage2", "stage3"]
    assert main([*words, str(tmp_path), "--resume"]) == 0
    assert main([*words[:-2], "stem,stage3", "--resume", "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize("more", ["--executor pipelined", "--rule fa"])
def test_the_largest_seed(tmp_path, more):
    words = [*FAST, *split(more), "--seed", str(2**63 - 1), "--quiet", "--out", str(tmp_path)]
    assert main(words) == 0


BAD_OPTIONS = {
    "unknown command": (["fly"], "fly"),
    "unknown option": ([*FAST, "--lanes", "2"], "--lanes"),
    "depth alone": ([*FAST, "--depth", "2", "--out", "OUT"], "need --executor pipelined"),
    "no out": ([*FAST], "--out"),
    "no dataset": (["train", "--out", "OUT"], "dataset: not given"),
    "unknown dataset": (["train", "--dataset", "mnist", "--out", "OUT"], "got 'mnist'"),
    "directory for digits": ([*FAST, "--data-dir", "x", "--out", "OUT"], "takes no directory"),
    "unknown model": ([*FAST, "--model", "vgg", "--out", "OUT"], "got 'vgg'"),
    "unknown rule": ([*FAST, "--rule", "hebb", "--out", "OUT"], "got 'hebb'"),
    "unknown family": ([*FAST, "--family", "cauchy", "--out", "OUT"], "cauchy"),
    "option without value": ([*FAST, "--rule-option", "tilt", "--out", "OUT"], "NAME=VALUE, got"),
    "option twice": (
        [*FAST, "--rule-option", "tilt=1", "--rule-option", "tilt=2", "--out", "OUT"],
        "rule-option tilt: expected once, got '1' and '2'",
    ),
    "unknown rule option": (
        [*FAST, "--rule", "sim", "--rule-option", "poll=1", "--out", "OUT"],
        "rule-option poll: rule 'sim' has no such option; expected one of projection",
    ),
    "bad rule option": (
        [*FAST, "--rule-option", "pool=max", "--out", "OUT"],
        "rule-option pool: expected a pooling KIND:GRID, such as max:2, got 'max'",
    ),
    "refused rule option": (
        [*FAST, "--rule-option", "feedback=best", "--out", "OUT"],
        "rule-option feedback: expected one of 'learned', 'fixed', 'chained', got 'best'",
    ),
    "family of bp": ([*FAST, "--rule", "bp", "--family", "gaussian", "--out", "OUT"], "family"),
    "absent executor": ([*FAST, "--executor", "wide", "--out", "OUT"], "got 'wide'"),
    "unknown dtype": ([*FAST, "--dtype", "int8", "--out", "OUT"], "got 'int8'"),
    "unknown device": ([*FAST, "--device", "toaster", "--out", "OUT"], "toaster"),
    "absent device": ([*FAST, "--device", "cuda:99", "--out", "OUT"], "cuda:99 is not there"),
    "no blocks": ([*FAST, "--blocks", "0", "--out", "OUT"], "blocks: expected at least 1"),
    "unknown end of a block": (
        [*FAST, "--model", "resnet10", "--blocks", "stem,stage7", "--out", "OUT"],
        "blocks: expected names of modules (such as stem, stage1, stage2, stage3, stage4, pool, "
        "flatten, head), got 'stage7'",
    ),
    "ends in another order": (
        [*FAST, "--model", "resnet10", "--blocks", "stage2,stage1", "--out", "OUT"],
        "stage1",
    ),
    "end named twice": (
        [*FAST, "--model", "resnet10", "--blocks", "stem,stem", "--out", "OUT"],
        "blocks: expected a number or different names of modules, got ['stem', 'stem']",
    ),
    "ends of an mlp": (
        [*FAST, "--blocks", "block1", "--out", "OUT"],
        "blocks: mlp expects a number of blocks, got ['block1']",
    ),
    "too many blocks": (
        [*FAST, "--model", "resnet10", "--blocks", "5", "--out", "OUT"],
        "blocks: expected 1 to 4",
    ),
    "no epochs": ([*FAST, "--epochs", "0", "--out", "OUT"], "epochs: expected at least 1"),
    "epochs a word": ([*FAST, "--epochs", "ten", "--out", "OUT"], "--epochs"),
    "no width": ([*FAST, "--width", "0", "--out", "OUT"], "width: expected at least 1"),
    "no batch": ([*FAST, "--batch-size", "0", "--out", "OUT"], "batch-size: expected at least 1"),
    "huge batch": ([*FAST, "--batch-size", "9999", "--out", "OUT"], "1 to 1442"),
    "negative rate": ([*FAST, "--lr", "-1", "--out", "OUT"], "lr: expected a positive number"),
    "rate a word": ([*FAST, "--lr", "high", "--out", "OUT"], "--lr"),
    "negative seed": ([*FAST, "--seed", "-1", "--out", "OUT"], "seed: expected 0"),
    "negative threads": ([*FAST, "--threads", "-1", "--out", "OUT"], "threads: expected at least"),
    "out is a file": ([*FAST, "--out", "FILE"], "not a usable directory"),
    "nothing to resume": (["train", "--resume", "--out", "OUT"], "no checkpoint there"),
    "resume and overwrite": (["train", "--resume", "--overwrite", "--out", "OUT"], "exclude"),
    "missing files": (
        ["train", "--dataset", "cifar-10", "--data-dir", "NOWHERE", "--out", "OUT"],
        "data_batch_1.bin: no such file",
    ),
    "no data dir": (["train", "--dataset", "fashion-mnist", "--out", "OUT"], "--data-dir"),
    "doctor file without json": (["doctor", "FILE"], "without --json"),
    "doctor file not writable": (["doctor", "--json", "NOWHERE/x.json"], "could not be written"),
}


@pytest.mark.parametrize(("words", "message"), BAD_OPTIONS.values(), ids=BAD_OPTIONS.keys())
def test_bad_options_are_one_line_and_code_2(tmp_path, capsys, words, message):
    (tmp_path / "file").write_text("mine")
    places = {"OUT": "out", "FILE": "file", "NOWHERE": "nowhere", "NOWHERE/x.json": "nowhere/x"}
    line = refused([tmp_path / places[w] if w in places else w for w in words], capsys)
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} == {"file"}, "something was written"
    assert (tmp_path / "file").read_text() == "mine"


def test_options_of_the_rule_reach_the_run_and_its_checkpoint(tmp_path, capsys):
    words = [*FAST, "--rule-option", "feedback=fixed", "--rule-option", "pool=max:2", "--quiet"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["rule_options"] == {"feedback": "fixed", "pool": ["max", 2]}
    assert summary["params_with_feedback"] == summary["params"] + 10, "a fixed table is no weight"
    resume = ["train", "--resume", "--quiet", "--out", tmp_path, "--rule-option"]
    assert "rule-option pool: the run in --out has pool=max:2, got pool=max:1" in refused(
        [*resume, "pool=max:1"], capsys
    )
    assert "tilt: the run in --out has tilt=1.0, got tilt=0.5" in refused(
        [*resume, "tilt=0.5"], capsys
    )
    assert main([str(word) for word in (*resume, "pool=max:2", "--rule-option", "tilt=1")]) == 0


def test_a_run_is_kept_unless_overwritten(tmp_path, capsys):
    words = [*FAST, "--quiet", "--out", tmp_path]
    assert main([str(word) for word in words]) == 0
    assert "already holds a run" in refused(words, capsys)
    assert "epochs: the run in --out has 1, got 2" in refused(
        ["train", "--resume", "--epochs", "2", "--out", tmp_path], capsys
    )
    assert main([str(word) for word in (*words, "--overwrite")]) == 0


def test_damaged_checkpoint(tmp_path, capsys):
    assert main([*FAST, "--quiet", "--out", str(tmp_path)]) == 0
    next((tmp_path / "checkpoint").glob("*.safetensors")).write_bytes(b"x")
    assert "damaged" in refused(["train", "--resume", "--out", tmp_path], capsys)


@pytest.mark.parametrize(
    ("dataset", "write", "message"),
    [
        ("fashion-mnist", write_idx_set, "train-images-idx3-ubyte.gz: expected 47040016 bytes"),
        ("cifar-10", write_batch_set, "data_batch_1.bin: expected 30730000 bytes"),
    ],
)
def test_files_that_are_not_the_official_ones(tmp_path, capsys, dataset, write, message):
    (tmp_path / "data").mkdir()
    write(tmp_path / "data")
    words = ["train", "--dataset", dataset, "--data-dir", tmp_path / "data", "--out"]
    assert message in refused([*words, tmp_path / "out"], capsys)
    assert not (tmp_path / "out").exists()


def test_diverged_training_is_code_1(tmp_path, capsys):
    words = [*FAST, "--lr", "1e30", "--rule", "bp", "--quiet", "--out", tmp_path]
    assert "diverged" in refused(words, capsys, code=1)
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("words", [[], ["--help"], ["train", "--help"], ["doctor", "--help"]])
def test_help(capsys, words):
    assert main(words) == 0
    assert "Usage: bll" in capsys.readouterr().out


COMMAND = [sys.executable, "-m", "bll"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
LONG = split("train --dataset digits --epochs 12 --batch-size 64 --width 16 --blocks 3 --out")


def start_and_stop(out: Path, number: signal.Signals) -> tuple[int, str]:
    """Start a run, send a signal in its second epoch; exit code and standard error."""
    child = subprocess.Popen(
        [*COMMAND, *LONG, str(out)], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )
    assert child.stderr is not None
    first = child.stderr.readline()
    assert first.startswith("epoch 1/12"), first + child.stderr.read()
    time.sleep(0.02)
    child.send_signal(number)
    _, errors = child.communicate(timeout=60)
    return child.returncode, errors


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    assert main([*LONG, str(out), "--quiet"]) == 0
    return out


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_run_continues_to_the_same_bits(tmp_path, whole_run, number):
    code, errors = start_and_stop(tmp_path / "parts", number)
    last = errors.splitlines()[-1]
    assert code == 130
    assert last.startswith("bll: interrupted in epoch ") and "--resume" in last
    assert not (tmp_path / "parts" / "summary.json").exists()
    assert main(["train", "--resume", "--quiet", "--out", str(tmp_path / "parts")]) == 0
    weights = (tmp_path / "parts" / "model.safetensors").read_bytes()
    assert weights == (whole_run / "model.safetensors").read_bytes()


def test_killed_run_resumes_from_its_last_epoch(tmp_path, whole_run):
    code, _ = start_and_stop(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert main(["train", "--resume", "--quiet", "--out", str(tmp_path)]) == 0
    weights = (tmp_path / "model.safetensors").read_bytes()
    assert weights == (whole_run / "model.safetensors").read_bytes()


def test_the_executor_says_what_its_blocks_see(tmp_path, capsys):
    words = [*FAST, "--executor", "auto", "--depth", "2", "--blocks", "3"]
    assert main([*words, "--out", str(tmp_path / "loud")]) == 0
    printed = capsys.readouterr()
    assert "executor auto, 2 of 3 blocks in flight" in printed.err
    assert printed.err.count(": exact (reads its own input") == 3
    assert "not graphed: mode: graphed needs blocks on a GPU" in " ".join(printed.out.split())
    assert main([*words, "--quiet", "--out", str(tmp_path / "quiet")]) == 0
    assert capsys.readouterr().err == ""
