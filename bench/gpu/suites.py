"""The test suites on the GPU: many processes at once, each filed as it ends.

A suite of `tests/gpu/test_suites.py` is a process, and so is a test function of the other files: an
error of CUDA that stays costs no other. What passed is not run again by a second run.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from subprocess import Popen
from typing import IO, Final

from bench.gpu import verdicts
from bench.gpu.commands import LOGGED, execute, start, stop, wait
from bench.gpu.run import Run, StageFailed

#: Processes at once; each has a context on the GPU.
MOST: Final = 16
#: Whose every test is a suite, and a process, of its own.
_SUITES: Final = "tests/gpu/test_suites.py"
_POLL: Final = 0.05
_SETTINGS: Final = {"BLL_REQUIRE": "cuda", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


@dataclass
class Job:
    """A process with tests."""

    process: Popen[str]
    said: IO[str]
    begun: float

    def text(self) -> str:
        """What it said until now."""
        self.said.seek(0)
        return self.said.read()


def _pytest(*words: str) -> list[str]:
    # No -q here: the project's settings have one, and two leave the names out.
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words]


def collect(run: Run) -> list[str]:
    """The tests, by pytest's names."""
    chosen = [] if run.full else ["-m", "not slow"]
    output = execute(run, _pytest("tests/gpu", "--collect-only", *chosen), _SETTINGS)
    return [line for line in output.splitlines() if line.startswith("tests/gpu/") and "::" in line]


def jobs(tests: Sequence[str]) -> dict[str, list[str]]:
    """What runs in a process of its own, by name: whole suites before single tests."""
    found: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: not test.startswith(_SUITES)):
        whole = test if test.startswith(_SUITES) else test.partition("[")[0]
        found.setdefault(whole.removeprefix("tests/gpu/"), []).append(test)
    return found


def judged(status: int | None, text: str) -> tuple[str, str]:
    """Result and note of a job; without a status it was stopped."""
    if status is None:
        # Verbose lines of pytest, of the suite or of the process that runs it.
        passed, failed = (len(re.findall(rf"\b{word}\b", text)) for word in ("PASSED", "FAILED"))
        note = f"stopped; {passed} passed and {failed} failed until then"
        return ("FAILED" if failed else "not finished"), note
    summaries = re.findall(r"^=* ?(\d+ \w+(?:, \d+ \w+)*) in [\d.]+ ?s", text, re.M)
    note = "; ".join(summaries)
    if status == 0 and " passed" in note:
        return "passed", note
    last = (text.strip().splitlines() or ["it said nothing"])[-1][:200]
    return "FAILED", f"exit {status}: {note or last}"


def run_jobs(run: Run, planned: dict[str, list[str]], workers: int) -> None:
    """Runs what has not passed yet, and files it, until the deadline."""
    suites = run.record.suites
    waiting = [name for name in planned if suites.get(name, {}).get("result") != "passed"]
    running: dict[str, Job] = {}
    try:
        while (waiting or running) and time.monotonic() < run.deadline:
            while waiting and len(running) < workers:
                name = waiting.pop(0)
                running[name] = _begin(planned[name])
            for name, job in list(running.items()):
                if job.process.poll() is not None:
                    _file(run, name, running.pop(name))
            time.sleep(_POLL)
    finally:
        for job in running.values():
            stop(job.process)
    for name, job in running.items():
        wait(job.process)
        _file(run, name, job, stopped=True)


def _begin(tests: list[str]) -> Job:
    said = tempfile.TemporaryFile("w+")  # noqa: SIM115
    # -s: a suite's own process says what passed as it goes; -vv: by name.
    process = start(_pytest("-s", "-vv", *tests), _SETTINGS, output=said)
    return Job(process, said, time.monotonic())


def _file(run: Run, name: str, job: Job, *, stopped: bool = False) -> None:
    stop(job.process)  # and what it has left behind
    with job.said:
        text = job.text()
    result, note = judged(None if stopped else job.process.returncode, text)
    seconds = round(time.monotonic() - job.begun, 1)
    run.record.file("suites", name, {"result": result, "seconds": seconds, "note": note})
    run.record.log(f"  {name}: {result} in {seconds:.0f} s: {note}")
    if result == "FAILED":
        run.record.log(text[-LOGGED:])


def run_suites(run: Run) -> str:
    """Runs every suite; returns a note.

    Raises:
        StageFailed: A suite failed, or there was none.
        NotFinished: Some were not reached, or stopped at the deadline.
    """
    tests = collect(run)
    if not tests:
        raise StageFailed("no tests were found")
    if run.dry:
        return f"{len(tests)} tests collected"
    planned = jobs(tests)
    run.record.plan("tests", list(planned))
    run_jobs(run, planned, min(MOST, os.cpu_count() or 1))
    results = {name: run.record.suites.get(name, {}).get("result") for name in planned}
    wrong = [name for name, result in results.items() if result == "FAILED"]
    left = [name for name, result in results.items() if result in (None, "not finished")]
    passed = len(results) - len(wrong) - len(left)
    return verdicts.concluded(f"{passed} of {len(planned)} suites passed", wrong, left)
