"""compute-sanitizer over one call of every kernel, each of its tools first held to planted faults.

A filter that the sanitizer does not understand, or a device it cannot watch, would look like a run
without faults. So every tool must find, with the very options of the run, the fault planted for it
in faulty.cu, and must not find one where there is none; and every run must say how much it called.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from bench.gpu import verdicts
from bench.gpu.commands import Failed, Late, execute
from bench.gpu.run import Run, StageFailed

#: Tools and backends in the order they are tried in, most telling first.
ORDER: Final = (
    ("memcheck", "native"),
    ("memcheck", "triton"),
    ("initcheck", "native"),
    ("racecheck", "native"),
    ("synccheck", "native"),
    ("initcheck", "triton"),
    ("racecheck", "triton"),
    ("synccheck", "triton"),
)
#: The status it ends with where it found something.
FOUND: Final = 9
#: Seconds that a program with a planted fault may take under a tool.
PLANTED_SECONDS: Final = 20.0
#: Kernels by a part of their mangled name: those of csrc/cuda alone, or all but torch's own, of
#: which some read memory before it is written.
OURS: Final = ("--kernel-name", "kns=3bll4cuda")
NOT_TORCH: Final = ("--kernel-name-exclude", "kns=N2at6native")
#: Cases of faulty.cu.
PLANTED: Final = {
    "memcheck": "bounds",
    "racecheck": "race",
    "initcheck": "unset",
    "synccheck": "barrier",
}
_FAULTY: Final = Path(__file__).with_name("faulty.cu")
#: Seconds below which a run is not begun: importing torch alone takes about as many.
_LEAST: Final = 15.0


def filters(check: str, backend: str) -> tuple[tuple[str, ...], ...]:
    """Options that choose kernels, the best first; the first that stands its test is taken."""
    if check == "initcheck":
        # A kernel that is not watched may leave its writes unseen: the tests tell.
        return NOT_TORCH, ()
    return (OURS if backend == "native" else NOT_TORCH, ())


def faultless(check: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Cases of faulty.cu in which nothing may be found."""
    cases: tuple[str, ...] = ("clean",)
    if check == "initcheck":
        cases = ("written", "foreign-written")
        cases += ("foreign-unset",) if chosen == NOT_TORCH else ()
    return cases


def reports(output: str) -> list[str]:
    """What the sanitizer itself says, but its name."""
    said = re.findall(r"^=+ +(\S.*)$", output, re.M)
    return [line for line in said if not line.startswith("COMPUTE-SANITIZER")]


def is_clean(output: str) -> bool:
    """Whether it watched, and summed up that there was nothing."""
    summaries = re.findall(r"SUMMARY: (\d+) (?:errors?|hazards?)", output)
    return "COMPUTE-SANITIZER" in output and bool(summaries) and set(summaries) == {"0"}


@dataclass
class Sanitizer:
    """The sanitizer of a run.

    Attributes:
        run: Whose time it takes.
        tool: Its path.
        faulty: The compiled program of planted faults.
        known: Why a tool with its options cannot be trusted; None where it can.
    """

    run: Run
    tool: str
    faulty: str
    known: dict[tuple[str, tuple[str, ...]], str | None] = field(default_factory=dict)

    def command(self, check: str, chosen: tuple[str, ...], *program: str) -> list[str]:
        """A program under one tool."""
        words = [self.tool, "--tool", check, "--error-exitcode", str(FOUND), "--print-limit", "20"]
        if check == "memcheck":
            # torch asks for much that a device may refuse; what counts here are accesses.
            words += ["--report-api-errors", "no"]
        return [*words, *chosen, *program]

    def distrust(self, check: str, chosen: tuple[str, ...]) -> str | None:
        """Why a tool with these options says nothing about kernels; None where it does."""
        key = (check, chosen)
        if key not in self.known:
            self.known[key] = self._try(check, chosen)
        return self.known[key]

    def _plant(self, check: str, chosen: tuple[str, ...], case: str) -> str:
        command = self.command(check, chosen, self.faulty, case)
        return execute(self.run, command, limit=PLANTED_SECONDS)

    def _try(self, check: str, chosen: tuple[str, ...]) -> str | None:
        planted = PLANTED[check]
        try:
            output = self._plant(check, chosen, planted)
            return f"does not find the planted fault: {_last(output)}"
        except Failed as error:
            if error.status != FOUND or is_clean(error.output):
                return f"fails on the planted fault: {error}: {_last(error.output)}"
        for case in faultless(check, chosen):
            try:
                output = self._plant(check, chosen, case)
            except Failed as error:
                return f"finds a fault where none is ({case}): {_last(error.output)}"
            if not is_clean(output):
                return f"does not sum up ({case}): {_last(output)}"
        return None

    def check(self, check: str, backend: str) -> tuple[str, str]:
        """Result and note of one tool over the kernels of a backend."""
        refused = []
        for chosen in filters(check, backend):
            reason = self.distrust(check, chosen)
            if reason is None:
                return self._over_kernels(check, backend, chosen)
            refused.append(f"{' '.join(chosen) or 'no filter'}: {reason}")
        return "FAILED", "the tool cannot be trusted here: " + "; ".join(refused)[:600]

    def _over_kernels(self, check: str, backend: str, chosen: tuple[str, ...]) -> tuple[str, str]:
        program = [sys.executable, "-m", "bench.gpu.every_kernel", backend]
        program += [] if self.run.full else ["--quick"]
        words = self.command(check, chosen, *program)
        # Memory of its own for every tensor, so that what is beyond one is nobody's.
        settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", "PYTHONUNBUFFERED": "1"}
        try:
            output, status = execute(self.run, words, settings), 0
        except Failed as error:
            output, status = error.output, error.status
        except Late as error:
            found = [line for line in reports(error.output) if "Warning" not in line]
            if found:
                return "FAILED", f"stopped; until then: {found[0][:200]}"
            calls = len(re.findall(r"^called ", error.output, re.M))
            return "not finished", f"stopped after {calls} calls, without a report until then"
        return judged(status, output, chosen)


def judged(status: int, output: str, chosen: tuple[str, ...]) -> tuple[str, str]:
    """Result and note of a run that ended by itself."""
    if status == FOUND:
        return "FAILED", (reports(output) or [_last(output)])[0][:300]
    if status != 0:
        return "FAILED", f"exit {status}: {_last(output)}"
    calls = re.search(r"^(\d+) calls of \w+$", output, re.M)
    if calls is None or int(calls[1]) == 0:
        return "FAILED", f"no kernel was called: {_last(output)}"
    if not is_clean(output):
        return "FAILED", f"it does not sum up: {_last(output)}"
    return "passed", f"{calls[1]} calls, {' '.join(chosen) or 'no filter'}"


def _last(output: str) -> str:
    lines = reports(output) or output.strip().splitlines() or ["it said nothing"]
    return lines[-1][:200]


def _compiled(run: Run, folder: str) -> str:
    """The program of planted faults."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        raise StageFailed("nvcc was not found")
    program = f"{folder}/faulty"
    major, minor = torch.cuda.get_device_capability()
    execute(run, [nvcc, "-std=c++17", f"-arch=sm_{major}{minor}", "-o", program, str(_FAULTY)])
    return program


def run_sanitizer(run: Run, backends: list[str]) -> str:
    """Runs every tool over every backend's kernels, as far as the time goes; returns a note.

    Raises:
        StageFailed: A tool found something, or cannot be trusted, or is not there.
        NotFinished: Some were not reached.
    """
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        raise StageFailed("compute-sanitizer was not found")
    if not backends:
        raise StageFailed("no backend serves the device")
    planned = [(check, backend) for check, backend in ORDER if backend in backends]
    run.record.plan("sanitizer", [f"{backend} {check}" for check, backend in planned])
    checks = run.record.checks
    with tempfile.TemporaryDirectory() as folder:
        sanitizer = Sanitizer(run, tool, _compiled(run, folder))
        for check, backend in planned:
            name = f"{backend} {check}"
            if checks.get(name, {}).get("result") == "passed" or run.seconds_left() < _LEAST:
                continue
            begun = time.monotonic()
            try:
                result, note = sanitizer.check(check, backend)
            except Late as error:
                result, note = "not finished", f"on planted faults: {error}"
            seconds = round(time.monotonic() - begun, 1)
            run.record.file("checks", name, {"result": result, "seconds": seconds, "note": note})
            run.record.log(f"  {name}: {result} in {seconds:.0f} s: {note}")
    results = {name: checks.get(name, {}).get("result") for name in run.record.plans["sanitizer"]}
    wrong = [f"{name}: {checks[name]['note']}" for name, r in results.items() if r == "FAILED"]
    left = [name for name, result in results.items() if result in (None, "not finished")]
    passed = [name for name, result in results.items() if result == "passed"]
    return verdicts.concluded(f"passed: {', '.join(passed) or 'none'}", wrong, left)
