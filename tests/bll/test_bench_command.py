"""``bll bench`` as a user runs it: in any folder, with and without JSON, within its budget."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bll.bench.text import busy_text
from bll.cli import main

ROOT = Path(__file__).resolve().parents[2]


def bll(folder: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the command in a folder of its own, where no part of the source tree is."""
    environment = {**os.environ, "PYTHONPATH": path or f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    command = [sys.executable, "-m", "bll", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500
    )


def check_run(found: dict) -> None:
    """What a run must hold whatever it had time for."""
    assert found["schema"] == "bll-bench/1"
    now = found["conditions"]
    for key in ("date", "commit", "device_name", "threads", "timer", "malloc", "versions"):
        assert key in now
    assert now["threads"] == 1 and now["versions"]["torch"] == torch.__version__
    assert len(found["entries"]) + len(found["left_out"]) == 7
    for entry in found["entries"]:
        assert entry["rejected"] is None, entry
        assert entry["gate"]["passed"] and entry["gate"]["error"] <= entry["gate"]["allowed"]
        assert entry["ours"]["seconds"] > 0 and 0 < entry["of_limit"] < 1.05
        assert entry["energy"] is None and entry["energy_reason"]
        for peer in entry["peers"].values():
            assert peer.get("missing") or peer["ratio_low"] <= peer["ratio"] <= peer["ratio_high"]


def test_a_budget_leaves_out_and_says_so(tmp_path):
    options = ("--quick", "--json", "out.json", "--budget", "3", "--rounds", "3")
    done = bll(tmp_path, "bench", *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    check_run(found)
    assert found["entries"]
    first = found["entries"][0]
    assert first["name"] == "posterior_kl bernoulli [256, 4096] float32"
    assert first["peers"]["torch.compile"]["missing"] == "left out: the time budget was used up"
    assert first["peers"]["torch.distributions"]["ratio"] > 1
    assert "posterior_kl bernoulli [256, 4096] float32" in done.stdout
    assert "missing: left out: the time budget was used up" in done.stdout
    left_out = "Left out, the time budget was used up: " in done.stdout
    assert left_out == bool(found["left_out"])
    rows = [line for line in done.stdout.splitlines() if line.startswith("  ")]
    assert rows and all(len(line) <= 100 for line in rows)
    assert list(tmp_path.iterdir()) == [tmp_path / "out.json"]


def test_json_on_standard_output_is_nothing_but_json(tmp_path):
    done = bll(tmp_path, "bench", "--quick", "--json", "--budget", "0", "--rounds", "3")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["entries"] == [] and len(found["left_out"]) == 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.json"], "named without --json"),
        (["--quick", "--suite", "steps"], "exclude each other"),
        (["--suite", "songs"], "suite: expected one of quick, kernels, steps, memory, schedules"),
        (["--rounds", "0"], "rounds: expected at least 1, got 0"),
        (["--device", "tpu"], "device: expected cpu or cuda, got 'tpu'"),
    ],
)
def test_bad_options(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr("bll.bench.run.keep_pages", lambda: None)
    assert main(["bench", *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert main(["bench", "--device", "cuda"]) == 2
    assert "torch sees no GPU" in capsys.readouterr().err


def test_an_entry_that_fails_is_told_and_hides_nothing(capsys, monkeypatch):
    from bll.bench.suites import Task
    from bll.commands import bench as command

    def fails(bench: object) -> dict:
        raise RuntimeError("no luck")

    monkeypatch.setattr("bll.bench.run.keep_pages", lambda: None)
    tasks = [Task("first", fails), Task("second", fails)]
    monkeypatch.setattr(command, "tasks_under", lambda suite, device: tasks)
    assert main(["bench", "--quick"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("REJECTED: RuntimeError: no luck") == 2
    assert "2 rejected: first: RuntimeError: no luck" in captured.err


def test_a_busy_machine_is_named():
    now = {"logical_processors": 2, "device_state_at_start": {"load_average": 4.0}}
    assert "busy (load 4.0 on 2 processors)" in (busy_text(now) or "")
    assert busy_text({**now, "device_state_at_start": {"load_average": 0.4}}) is None
    assert busy_text({**now, "device_state_at_start": None}) is None


@pytest.mark.slow
def test_quick_is_quick(tmp_path):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = bll(tmp_path, "bench", "--quick", "--json", "out.json")
    assert done.returncode == 0, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    check_run(json.loads((tmp_path / "out.json").read_text()))
    # Processor time: other work on the machine must not decide. Alone, it is the time it takes.
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 85


@pytest.mark.slow
def test_it_runs_from_an_installed_wheel(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    for name in filter(None, listed):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "install", str(source), "--no-deps", "--target"]
    pip += [str(target), "--no-build-isolation", "--disable-pip-version-check"]
    environment = {**os.environ, "BLL_BUILD": "none"}
    made = subprocess.run(pip, env=environment, capture_output=True, text=True, timeout=500)
    assert made.returncode == 0, made.stderr
    place = tmp_path / "anywhere"
    place.mkdir()
    options = ("--quick", "--json", "out.json", "--budget", "5", "--rounds", "3")
    done = bll(place, "bench", *options, path=str(target))
    assert done.returncode == 0, done.stderr
    found = json.loads((place / "out.json").read_text())
    check_run(found)
    assert found["conditions"]["commit"] is None
    assert found["conditions"]["backends"]["native"] is not None
    shown = bll(place, "report", "out.json", "--out", "page", path=str(target))
    assert shown.returncode == 0, shown.stderr
    assert (place / "page" / "report.html").exists()
