"""The GPU driver, tried without a GPU: what it files, how it fails, and how it goes on."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def drive(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_dry_run_measures_every_kernel(tmp_path: Path) -> None:
    done = drive(tmp_path, "--dry-run", "--stage", "kernels")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["stages"]["kernels"]["ok"]
    assert len(found["entries"]) >= 30
    for name, entry in found["entries"].items():
        assert entry["gate"], name
        assert entry["bytes"] > 0
        assert set(entry["peers"]) >= {"eager"}, name
        for peer, times in entry["peers"].items():
            # Liger is not installed here, and says so.
            assert times.get("cold_us", 0) > 0 or (peer == "liger" and times["missing"]), name
    table = (tmp_path / "gpu.md").read_text()
    assert all(name in table for name in found["entries"])
    assert "passed" in (tmp_path / "gpu.log").read_text()


def test_dry_run_of_the_executor(tmp_path: Path) -> None:
    done = drive(tmp_path, "--dry-run", "--stage", "executor")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    entry = found["executors"]["mlp, tiny"]
    modes = {"sequential", "pipelined", "graphed", "graphed, one stream", "autograd", "backprop"}
    assert set(entry["milliseconds"]) == modes, entry["failures"]
    assert entry["failures"] == {}
    assert entry["memory"]["ratio"] >= 0.5
    assert set(entry["goals_met"]) == {"autograd", "memory of depth 1 <= 1.1 x largest block"}
    assert "mlp, tiny" in (tmp_path / "gpu.md").read_text()
    timeline = json.loads((tmp_path / "timeline-mlp--tiny.json").read_text())
    assert any(event["name"] == "bll::backward::layer2" for event in timeline["traceEvents"])


def test_dry_run_finds_the_tests(tmp_path: Path) -> None:
    done = drive(tmp_path, "--dry-run", "--stage", "tests")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    note = json.loads((tmp_path / "gpu.json").read_text())["stages"]["tests"]["note"]
    assert int(re.fullmatch(r"(\d+) tests collected.*", note).group(1)) >= 40


def test_suites_on_the_gpu_must_have_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    from suite_run import run_suite

    (tmp_path / "stand_in.py").write_text("ANSWER = 42\n")
    suite = tmp_path / "some_suite.py"
    suite.write_text("import stand_in\ndef test_it(): assert stand_in.ANSWER == 42\n")
    run_suite(suite, tmp_path)
    for broken in ("def test_it(): assert False\n", "import pytest\npytest.skip('no')\n"):
        suite.write_text(broken)
        with pytest.raises(AssertionError):
            run_suite(suite, tmp_path)


def test_a_failing_stage_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.gpu import stages
    from bench.gpu.record import Record

    def fails(run: stages.Run) -> str:
        raise stages.StageFailed("no | luck")

    monkeypatch.setitem(stages.STAGES, "tests", fails)
    monkeypatch.setitem(stages.STAGES, "kernels", lambda run: "measured")
    record = Record(tmp_path)
    run = stages.Run(record, deadline=1e9, full=False, dry=True)
    assert not stages.run_stage("tests", run)
    assert stages.run_stage("kernels", run)
    found = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert found["tests"] == {"ok": False, "seconds": 0.0, "note": "StageFailed: no / luck"}
    assert found["kernels"]["ok"]


def test_a_stage_ends_at_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    import time

    from bench.gpu import stages
    from bench.gpu.record import Record

    run = stages.Run(Record(tmp_path), deadline=time.monotonic(), full=False, dry=True)
    with pytest.raises(stages.StageFailed, match="not done after"):
        stages._execute(run, [sys.executable, "-c", "import time; time.sleep(30)"])


def test_what_a_late_command_has_started_ends_with_it(tmp_path: Path) -> None:
    import time

    from bench.gpu import stages
    from bench.gpu.record import Record

    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    run = stages.Run(Record(tmp_path), deadline=time.monotonic() + 60, full=False, dry=True)
    with pytest.raises(stages.StageFailed, match="not done after"):
        stages._execute(run, [sys.executable, "-c", code], 1.5)
    time.sleep(5)
    assert not mark.exists()
    assert run.share(0.5) <= 30 < stages.Run(run.record, run.deadline, True, True).share(0.5)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = drive(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.strip() == "bench.gpu: torch sees no GPU here"
    assert not (tmp_path / "out").exists()
