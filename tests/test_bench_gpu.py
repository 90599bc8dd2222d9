"""The GPU driver, tried without a GPU: what it files, how it fails, and how it goes on."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import record as record_module
from bench.gpu import serving, stages
from bench.gpu.commands import Late, execute
from bench.gpu.record import Record
from bench.gpu.run import NotFinished, Run, StageFailed
from bll_kernels.backends import native

ROOT = Path(__file__).resolve().parent.parent


def drive(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bench.gpu", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_dry_run_measures_every_kernel(tmp_path: Path) -> None:
    done = drive(tmp_path, "--dry-run", "--stage", "kernels")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["stages"]["kernels"]["result"] == "passed"
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

    door, beside = tmp_path / "door", tmp_path / "suites"
    for folder, answer in ((door, 42), (beside, 41)):
        folder.mkdir()
        (folder / "stand_in.py").write_text(f"ANSWER = {answer}\n")
    suite = beside / "some_suite.py"
    suite.write_text("import stand_in\ndef test_it(): assert stand_in.ANSWER == 42\n")
    run_suite(suite, door)
    for broken in ("def test_it(): assert False\n", "import pytest\npytest.skip('no')\n"):
        suite.write_text(broken)
        with pytest.raises(AssertionError):
            run_suite(suite, door)


@pytest.mark.parametrize("suite", ["pool", "standardize"])
def test_the_native_door_with_the_cpu_behind_it(
    suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Suites of the emulator, sent through the door that leads them to a GPU elsewhere."""
    if native.FAILURE is not None:
        pytest.skip(f"the compiled library stands in for the GPU: {native.FAILURE}")
    gpu = ROOT / "tests" / "gpu"
    monkeypatch.syspath_prepend(str(gpu))
    from suite_run import run_suite

    shutil.copy(gpu / "native_door" / "emulated.py", tmp_path)
    door = (gpu / "on_device.py").read_text()
    assert 'DEVICE = "cuda"' in door
    (tmp_path / "on_device.py").write_text(door.replace('DEVICE = "cuda"', 'DEVICE = "cpu"'))
    run_suite(ROOT / "tests" / "cuda" / f"emulated_{suite}.py", tmp_path)
    # The emulator would have run them in its other orders of threads too.
    assert "order1" not in capsys.readouterr().out


def test_a_suite_says_what_passed_before_it_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "gpu"))
    from suite_run import run_suite

    suite = tmp_path / "late_suite.py"
    suite.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(60)\n")
    with pytest.raises(AssertionError):
        run_suite(suite, tmp_path, timeout=6)
    assert "::test_a PASSED" in capsys.readouterr().out


def some_run(folder: Path, seconds: float = 60.0, **settings: Any) -> Run:
    return Run(
        Record(folder), time.monotonic() + seconds, **{"full": False, "dry": True, **settings}
    )


def test_a_failing_stage_does_not_hide_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(run: Run) -> str:
        raise StageFailed("no | luck")

    def is_short(run: Run) -> str:
        raise NotFinished("3 of 4 suites passed; 1 not reached: d")

    monkeypatch.setitem(stages.STAGES, "build", lambda run: "built")
    monkeypatch.setitem(stages.STAGES, "tests", is_short)
    monkeypatch.setitem(stages.STAGES, "sanitizer", fails)
    monkeypatch.setitem(stages.STAGES, "kernels", lambda run: "measured")
    monkeypatch.setitem(stages.STAGES, "executor", lambda run: "measured too")
    assert not stages.run_selection(some_run(tmp_path), time.monotonic())
    found = json.loads((tmp_path / "gpu.json").read_text())["stages"]
    assert found["sanitizer"] == {
        "result": "FAILED", "seconds": 0.0, "note": "StageFailed: no / luck",
    }  # fmt: skip
    assert found["tests"]["result"] == "not finished"
    assert [found[name]["result"] for name in ("build", "kernels", "executor")] == ["passed"] * 3
    assert "| tests | not finished | 0 | 3 of 4" in (tmp_path / "gpu.md").read_text()


def test_every_stage_has_its_share_whatever_others_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(stages.SHARES) == set(stages.STAGES) - stages.ON_REQUEST
    assert sum(stages.SHARES.values()) == pytest.approx(1.0)
    ends = stages.deadlines(100.0, 540.0)
    assert ends["executor"] == pytest.approx(640.0)
    for name, before in zip(list(ends)[1:], ends, strict=False):
        assert ends[name] - ends[before] >= 60, name
    given = {}

    def notes(name: str) -> Callable[[Run], str]:
        def stage(run: Run) -> str:
            given[name] = run.deadline - begin
            return ""

        return stage

    for name in stages.SHARES:
        monkeypatch.setitem(stages.STAGES, name, notes(name))
    begin = time.monotonic()
    run = replace(some_run(tmp_path), deadline=begin + 540)
    assert stages.run_selection(run, begin)
    # Behind stages that took nothing, their time is there too: a deadline, not a duration.
    assert given["build"] == pytest.approx(540 * stages.SHARES["build"])
    assert given["kernels"] == pytest.approx(540 * (1 - stages.SHARES["executor"]))


def test_a_command_ends_at_its_deadline(tmp_path: Path) -> None:
    with pytest.raises(StageFailed, match="not done after"):
        execute(some_run(tmp_path, 0.0), [sys.executable, "-c", "import time; time.sleep(30)"])


def test_what_a_late_command_has_started_ends_with_it(tmp_path: Path) -> None:
    mark = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    code = "print('begun', flush=True); import subprocess, sys; "
    code += f"subprocess.run([sys.executable, '-c', {child!r}])"
    with pytest.raises(Late, match="not done after") as caught:
        execute(some_run(tmp_path), [sys.executable, "-c", code], limit=1.5)
    assert caught.value.output == "begun\n"
    time.sleep(5)
    assert not mark.exists()


def test_the_build_is_for_the_gpu_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []
    serves = {"backends": {"native": None, "triton": None}, "native_cuda": None}

    def executed(run: Run, command: list[str], settings: dict[str, str] | None = None) -> str:
        asked.append((command, settings))
        return f"a warning\n{json.dumps(serves)}\n" if "bench.gpu.serving" in command else ""

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr("shutil.which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(stages, "execute", executed)
    monkeypatch.setattr(serving, "execute", executed)
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    for name in ("_C.abi3.so", "_C_cuda.abi3.so", "_core.so"):
        (libraries / name).touch()
    monkeypatch.setattr(stages, "LIBRARIES", libraries)
    run = some_run(tmp_path, dry=False)
    assert stages.build(run).endswith(" for 9.0")
    # Had the build been cut, none of other sources would be measured.
    assert [path.name for path in libraries.iterdir()] == ["_core.so"]
    assert "setup.py" in asked[0][0]
    assert asked[0][1] == {"BLL_BUILD": "cuda", "BLL_CUDA_ARCHS": "90"}
    # What serves is not what this process holds, but what a fresh one loads.
    assert json.loads((tmp_path / "gpu.json").read_text())["conditions"]["native_cuda"] is None
    assert serving.backends(serves, dry=False) == ["native", "triton"]
    serves["native_cuda"] = "not built"
    with pytest.raises(StageFailed, match="_C_cuda: not built"):
        stages.build(run)
    assert serving.backends(serves, dry=False) == ["triton"]


def test_a_second_run_goes_on_without_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_module, "command_output", lambda *command: None)
    monkeypatch.delenv("BLL_COMMIT", raising=False)
    first = Record(tmp_path)
    assert first.now["commit"] is first.now["commit_from"] is None
    first.entry("a kernel", {"backend": "native", "failure": "no"})
    monkeypatch.setenv("BLL_COMMIT", "abc123")
    second = Record(tmp_path)
    assert second.entries == first.entries
    second.flush()
    assert "commit abc123 as BLL_COMMIT says" in (tmp_path / "gpu.md").read_text()
    # Other sources, another GPU or another torch: nothing of before is theirs.
    for name in ("sources", "device", "torch"):
        plain = json.loads((tmp_path / "gpu.json").read_text())
        plain["conditions"][name] = "another"
        other = tmp_path / name
        other.mkdir()
        (other / "gpu.json").write_text(json.dumps(plain))
        assert Record(other).entries == {}, name


def test_every_ratio_says_how_its_peer_was_timed(tmp_path: Path) -> None:
    record = Record(tmp_path)
    ours = {"cold_us": 2.0, "hot_us": 1.0, "host_us": 9.0, "timed_in": "graph"}
    peers = {
        "eager": {"timed_in": "stream", "ratio": {"ratio": 9.5}},
        "compile": {"timed_in": "graph", "ratio": {"ratio": 1.25}},
        "liger": {"missing": "not installed"},
    }
    entry = {"backend": "native", "bytes": 10, "copy_gb_s": 1.0, "error": 0.0, "gate": True}
    record.entry("k", {**entry, "ours": ours, "peers": peers})
    line = (tmp_path / "gpu.md").read_text().splitlines()[-1]
    assert line.startswith("| k | native | graph | 2.00 |")
    assert "| 9.50 stream | - | 1.25 graph | - | - | missing |" in line


def test_sources_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "bench" / "results").mkdir(parents=True)
    source = tmp_path / "csrc" / "a.cu"
    source.write_text("1")
    before = record_module.source_digest(tmp_path)
    (tmp_path / "bench" / "results" / "b.toml").write_text("a result")
    (tmp_path / "csrc" / "a.o").write_text("an output")
    assert record_module.source_digest(tmp_path) == before
    source.write_text("2")
    assert record_module.source_digest(tmp_path) != before


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    done = drive(tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.strip() == "bench.gpu: torch sees no GPU here"
    assert not (tmp_path / "out").exists()
