"""A stage's process that dies, hangs or loses the device: what is filed, and what goes on."""

from __future__ import annotations

import itertools
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import children, executor, kernels, stages, verdicts
from bench.gpu.record import Record
from bench.gpu.run import DeviceLost, NotFinished, Run, StageFailed, require_device
from bench.gpu.work import WORK, perform

GOOD = {
    "backend": "native",
    "bytes": 1000,
    "copy_gb_s": 1.0,
    "error": 1e-9,
    "gate": True,
    "impossible": False,
    "ours": {"cold_us": 1.0, "hot_us": 1.0, "host_us": 1.0, "timed_in": "graph"},
    "peers": {},
}


class Forked:
    """A process like the driver's own, begun in milliseconds: it has imported everything."""

    def __init__(self, work: Callable[[], int], errors: Any) -> None:
        sys.stdout.flush()
        self._status: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                os.setsid()
                os.dup2(errors.fileno(), 2)
                sys.stderr = open(2, "w", buffering=1)  # noqa: SIM115
                status = work()
            except BaseException:
                os.write(2, traceback.format_exc().encode())
            finally:
                os._exit(status)

    def poll(self) -> int | None:
        return self._take(os.WNOHANG)

    def wait(self, timeout: float) -> int | None:
        return self._take(0)

    def _take(self, how: int) -> int | None:
        if self._status is None:
            found, status = os.waitpid(self.pid, how)
            if found:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Processes are forks that read their command as the real ones do; the commands."""
    commands: list[list[str]] = []

    def start(command: list[str], settings: Any, *, output: Any, errors: Any) -> Forked:
        commands.append(command)
        words = dict(itertools.pairwise(command))

        def work() -> int:
            left = float(words["--child"]) - time.time()
            record = Record(Path(words["--out"]), joined=True)
            full, dry = "--full" in command, "--dry-run" in command
            return perform(words["--stage"], Run(record, time.monotonic() + left, full, dry))

        return Forked(work, errors)

    monkeypatch.setattr(children, "start", start)
    return commands


def some_run(folder: Path, seconds: float = 60.0) -> Run:
    record = Record(folder)
    record.flush()
    return Run(record, time.monotonic() + seconds, full=False, dry=True)


@dataclass(frozen=True)
class FakeCase:
    name: str
    quick: bool = True


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Cases that are not measured, but do what their name says."""

    def entry(case: FakeCase, *rest: Any) -> dict[str, Any]:
        progress = rest[-1]
        progress.part("ours")
        if case.name == "crashes":
            os.kill(os.getpid(), signal.SIGKILL)
        if case.name == "hangs":
            time.sleep(60)
        if case.name == "raises":
            raise ValueError("no\nluck")
        if case.name == "loses":
            raise DeviceLost("AcceleratorError: CUDA error: an illegal memory access")
        if case.name == "has a bad peer" and "compile" not in progress.without:
            progress.part("compile", optional=True)
            os._exit(7)
        if case.name == "is wrong":
            return {**GOOD, "gate": False}
        return {**GOOD, "peers": {k: {"missing": v} for k, v in progress.without.items()}}

    def use(*names: str) -> None:
        monkeypatch.setattr(kernels, "cases", lambda *a: [FakeCase(name) for name in names])

    for name in ("step_cases", "map_cases"):
        monkeypatch.setattr(kernels, name, lambda *a: [])
    monkeypatch.setattr(kernels, "measure", entry)
    monkeypatch.setattr("bench.gpu.serving.backends", lambda *a: ["native"])
    monkeypatch.setattr(children, "LIMITS", {"kernels": 1.0})
    return use


def test_one_bad_entry_costs_no_other(tmp_path, begun, measured) -> None:
    bad = ("crashes", "raises", "hangs", "loses", "has a bad peer", "is wrong")
    measured(*(x for pair in zip(bad, "abcdef", strict=True) for x in pair))
    run = some_run(tmp_path)
    assert not stages.run_stage("kernels", run)
    entries = Record(tmp_path, joined=True).entries
    assert [entries[f"{name} [native]"] for name in "abcdef"] == [GOOD] * 6
    reasons = {name: entries[f"{name} [native]"].get("failure") for name in bad}
    assert reasons["crashes"] == "ours: SIGKILL: it said nothing"
    assert reasons["raises"] == "ValueError: no"
    assert reasons["hangs"] == "ours: no end after 1 s"
    lost = "DeviceLost: AcceleratorError: CUDA error: an illegal memory access"
    assert reasons["loses"] == f"ours: exit 1: {lost}"
    # A peer that ends the process is left out, and ours is measured.
    peers = entries["has a bad peer [native]"]["peers"]
    assert peers == {"compile": {"missing": "exit 7: it said nothing"}}
    # Four ends of a process, and a fifth that is through.
    assert len(begun) == 5
    stage = run.record.stages["kernels"]
    assert stage["result"] == "FAILED"
    assert stage["note"].startswith("StageFailed: 12 of 12 measured; 5 wrong: crashes [native]; ")
    table = (tmp_path / "gpu.md").read_text()
    assert "| crashes [native] | - | failed: ours: SIGKILL: it said nothing |" in table
    assert not (tmp_path / "gpu.now").exists()


def test_a_second_run_measures_only_what_is_left(tmp_path, begun, measured, monkeypatch) -> None:
    measured("a", "hangs", "b")
    monkeypatch.setattr(children, "GRACE", 0.1)
    run = some_run(tmp_path, seconds=0.6)
    assert not stages.run_stage("kernels", run)
    # Its time was up: that is nobody's fault.
    assert set(run.record.entries) == {"a [native]"}
    assert run.record.stages["kernels"]["result"] == "not finished"
    note = "1 of 3 measured; 2 not reached: hangs [native]; b [native]"
    assert run.record.stages["kernels"]["note"] == note
    assert not (tmp_path / "gpu.now").exists()
    again = some_run(tmp_path)
    assert not stages.run_stage("kernels", again)
    assert again.record.entries["hangs [native]"]["failure"] == "ours: no end after 1 s"
    assert again.record.entries["b [native]"] == GOOD


def test_what_does_not_fit_is_not_begun(tmp_path, measured, monkeypatch) -> None:
    measured("a", "b", "c")
    monkeypatch.setattr(kernels, "FIRST", {"quick": 20.0, "full": 120.0, "alone": 5.0})
    record = Record(tmp_path)
    limits = {"full": False, "deadline": time.monotonic() + 19}
    kernels.run(record, kernels.HostTimer(), "cpu", ["native"], **limits)
    with pytest.raises(NotFinished, match="0 of 3 measured; 3 not reached"):
        verdicts.kernels(record)
    # What the last ones took says what the next may.
    pace = kernels.Pace(20.0)
    pace.took(50.0)
    assert pace.estimate() == 60.0
    for seconds in (1.0, 2.0, 3.0):
        pace.took(seconds)
    assert pace.estimate() == pytest.approx(3.6)


def test_no_time_is_no_pass(tmp_path, begun, measured) -> None:
    measured("a")
    run = some_run(tmp_path)
    assert stages.run_stage("kernels", run)
    # A plan of before says nothing of a stage that was not begun.
    late = some_run(tmp_path, seconds=0.0)
    for stage, count in (("kernels", "0 of 0 measured"), ("executor", "0 of 0 networks")):
        assert not stages.run_stage(stage, late)
        found = late.record.stages[stage]
        assert found["result"] == "not finished" and found["note"].startswith(count)
        assert found["note"].endswith("nothing was reached")


def test_a_process_that_cannot_begin_fails_its_stage(tmp_path, begun, monkeypatch) -> None:
    def breaks(run: Run) -> None:
        raise ImportError("no such library")

    monkeypatch.setitem(WORK, "kernels", breaks)
    run = some_run(tmp_path)
    assert not stages.run_stage("kernels", run)
    note = "StageFailed: exit 1: ImportError: no such library"
    assert run.record.stages["kernels"]["note"] == note
    assert len(begun) == 1


def test_the_words_of_an_error_are_found() -> None:
    said = (
        "Traceback (most recent call last):\n  File ...\n"
        "torch.AcceleratorError: CUDA error: misaligned address\n"
        "CUDA kernel errors might be asynchronously reported\nCompile with `TORCH_USE_CUDA_DSA`\n"
    )
    assert children.last_words(said) == "torch.AcceleratorError: CUDA error: misaligned address"
    assert children.last_words("killed\n\n") == "killed"


def test_an_error_that_stays_is_told_from_one_call(monkeypatch) -> None:
    def fails() -> None:
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    require_device("cuda", ValueError("no"))
    monkeypatch.setattr(torch.cuda, "synchronize", fails)
    require_device("cpu", ValueError("no"))
    with pytest.raises(DeviceLost, match=r"^ValueError: no$"):
        require_device("cuda", ValueError("no\nand more"))


def test_a_mode_of_other_bits_costs_no_other_case(tmp_path, monkeypatch) -> None:
    trained = executor._trained

    def fake(asked: executor.Measured, mode: str, x: Any, labels: Any) -> list[torch.Tensor]:
        found = trained(asked, mode, x, labels)
        if asked.name == "differs" and mode == "pipelined":
            found[0][0, 0] += 1
        if asked.name == "cannot" and mode == "graphed":
            raise RuntimeError("a block cannot be captured")
        if asked.name == "fails":
            raise ValueError("sequential too")
        return found

    tiny = executor.TINY["mlp, tiny"]
    names = ("fails", "differs", "cannot")
    monkeypatch.setattr(executor, "_trained", fake)
    monkeypatch.setattr(executor, "TINY", dict.fromkeys(names, tiny))
    record = Record(tmp_path)
    executor.run(record, "cpu", deadline=time.monotonic() + 100, tiny=True)
    fails, differs, cannot = (record.executors[name] for name in names)
    assert fails == {"failure": "ValueError: sequential too"}
    why = "its parameters differ from those of sequential"
    assert differs["gates_failed"] == {"pipelined": why}
    assert "pipelined" not in differs["milliseconds"] and "graphed" in differs["milliseconds"]
    assert cannot["gates_failed"] == {"graphed": "RuntimeError: a block cannot be captured"}
    assert not {"graphed", "graphed, one stream"} & set(cannot["milliseconds"])
    with pytest.raises(StageFailed, match=r"3 of 3 networks; .*; 3 wrong: fails; differs; cannot"):
        verdicts.executor(record)
    assert f"gate of pipelined: {why}" in (tmp_path / "gpu.md").read_text()
    # A peer that cannot be built is a finding; a mode that cannot is a failure.
    ours = {"gates_failed": {}, "failures": {"graphed, one stream": "RuntimeError: no"}}
    assert verdicts.executor_is_wrong(ours)
    assert not verdicts.executor_is_wrong({**ours, "failures": {"backprop graph": "no"}})


def test_networks_that_do_not_fit_are_not_reached(tmp_path, monkeypatch) -> None:
    tiny = executor.TINY["mlp, tiny"]
    slow = executor.Case("tiny", 8, 1, {}, seconds=500.0, compiling=0.0)
    monkeypatch.setattr(executor, "TINY", {"a": tiny, "b": slow})
    record = Record(tmp_path)
    executor.run(record, "cpu", deadline=time.monotonic() + 100, tiny=True)
    assert set(record.executors) == {"a"}
    with pytest.raises(NotFinished, match=r"1 of 2 networks; .*1 not reached: b"):
        verdicts.executor(record)
    # A peer that the time was short for is left, and its case is measured again.
    record.executors["a"]["not_reached"] = ["compiled local"]
    with pytest.raises(NotFinished, match="2 not reached: b; a: compiled local"):
        verdicts.executor(record)
    monkeypatch.setattr(executor, "TINY", {"a": replace(tiny, compiling=500.0)})
    executor.run(record, "cpu", deadline=time.monotonic() + 100, tiny=True)
    assert record.executors["a"]["not_reached"] == ["compiled local"]
    monkeypatch.setattr(executor, "TINY", {"a": tiny})
    executor.run(record, "cpu", deadline=time.monotonic() + 100, tiny=True)
    assert record.executors["a"]["not_reached"] == []
