"""The stages of a GPU run. A stage that fails is reported and does not hide the others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from bench.gpu import executor, kernels, table1
from bench.gpu.record import ROOT, Record
from bench.gpu.timing import CudaTimer, HostTimer
from bll_kernels import available
from bll_kernels.backends import native

#: What compute-sanitizer looks for, one run each.
SANITIZERS: Final = ("memcheck", "racecheck", "initcheck", "synccheck")


class StageFailed(Exception):
    """Why a stage did not pass."""


@dataclass(frozen=True)
class Run:
    """What the stages share."""

    record: Record
    deadline: float  # of time.monotonic()
    full: bool  # one stage alone, all of it
    dry: bool  # tiny shapes on the CPU, to try the driver itself
    data_dirs: tuple[str, ...] = ()  # where image files lie
    epochs: int | None = None  # of table1, in place of its recipes'

    def seconds_left(self) -> float:
        """Until the deadline; at least one, so that a late stage fails by its own time limit."""
        return max(1.0, self.deadline - time.monotonic())

    def share(self, part: float) -> float:
        """Seconds for a command that others follow: a part of what is left; alone, all of it."""
        return self.seconds_left() * (1.0 if self.full else part)


def _execute(run: Run, command: Sequence[str], limit: float | None = None, **settings: str) -> str:
    """Runs a command in the project's root, its output in the log too.

    Raises:
        StageFailed: it failed, or ran past the time limit.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", **settings}
    seconds = min(limit or run.seconds_left(), run.seconds_left())
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            # What it has started too, which would run beside the next stage's measurements.
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            run.record.log(output[-6000:])
            raise StageFailed(f"not done after {seconds:.0f} s") from error
    run.record.log(output[-6000:])
    if process.returncode != 0:
        last = output.strip().splitlines()[-1:] or ["no output"]
        raise StageFailed(f"exit {process.returncode}: {last[0][:200]}")
    return output


def backends(run: Run) -> list[str]:
    """What serves the device under test, by name."""
    if run.dry:
        return ["native"] if available()["native"] is None else ["reference"]
    found = ["native"] if native.CUDA_FAILURE is None else []
    return found + (["triton"] if available()["triton"] is None else [])


def build(run: Run) -> str:
    """Compiles `_C` and `_C_cuda` in place against the torch that is here; downloads nothing."""
    if run.dry:
        return "dry run: nothing built"
    if shutil.which("nvcc") is None:
        raise StageFailed("nvcc was not found")
    _execute(run, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], BLL_BUILD="cuda")
    code = "import bll_kernels.backends.native as n; print(n.FAILURE, n.CUDA_FAILURE, sep='|')"
    found = _execute(run, [sys.executable, "-c", code]).strip()
    if found != "None|None":
        raise StageFailed(f"built, but not loaded: {found}")
    return f"against torch {torch.__version__}"


def tests(run: Run) -> str:
    """The kernels' numerical suites and the device tests, on the GPU."""
    # No -q here: the project's settings have one, and two leave the summary out.
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/gpu"]
    if not run.full:
        command += ["-m", "not slow"]
    if run.dry:
        command += ["--collect-only"]
    output = _execute(run, command, run.share(0.45), BLL_REQUIRE="cuda")
    found = re.findall(r"\d+ (?:passed|failed|skipped|tests collected)[^\n]*", output)
    return found[-1] if found else "no summary found"


def sanitizer(run: Run) -> str:
    """compute-sanitizer over one call of every kernel."""
    tool = shutil.which("compute-sanitizer")
    if run.dry:
        return "dry run: nothing sanitized"
    if tool is None:
        raise StageFailed("compute-sanitizer was not found")
    passed, failures = [], []
    for backend in backends(run):
        for check in SANITIZERS:
            name = f"{backend} {check}"
            command = [tool, "--tool", check, "--error-exitcode", "9", "--print-limit", "20"]
            if check == "initcheck":
                # torch's own library reads some of its memory before writing it.
                command += ["--kernel-name-exclude", "regex:at::native"]
            command += [sys.executable, "-m", "bench.gpu.every_kernel", backend]
            try:
                _execute(run, command, run.share(0.12), PYTORCH_NO_CUDA_MEMORY_CACHING="1")
                passed.append(name)
            except StageFailed as error:
                failures.append(f"{name}: {error}")
    if failures:
        raise StageFailed("; ".join(failures))
    return ", ".join(passed)


def speed(run: Run) -> str:
    """Every kernel against its peers."""
    return kernels.run(
        run.record,
        HostTimer() if run.dry else CudaTimer(),
        "cpu" if run.dry else "cuda",
        backends(run),
        full=run.full,
        deadline=run.deadline,
        tiny=run.dry,
    )


def pipeline(run: Run) -> str:
    """The executor's modes against autograd and backpropagation."""
    device = "cpu" if run.dry else "cuda"
    return executor.run(run.record, device, deadline=run.deadline, tiny=run.dry)


def accuracy(run: Run) -> str:
    """The published table, trained from its recipes."""
    return table1.run(
        run.record, run.data_dirs, deadline=run.deadline, epochs=run.epochs, dry=run.dry
    )


STAGES: Final[dict[str, Callable[[Run], str]]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "kernels": speed,
    "executor": pipeline,
    "table1": accuracy,
}
#: Stages that only run where they are asked for: they take many calls.
ON_REQUEST: Final = frozenset({"table1"})


def run_stage(name: str, run: Run) -> bool:
    """Runs one stage and files how it ended; True where it passed."""
    run.record.log(f"== {name}")
    start = time.monotonic()
    try:
        note, ok = STAGES[name](run), True
    # The next stage runs whatever happened in this one; the record says what did.
    except Exception as error:
        note, ok = f"{type(error).__name__}: {error}", False
    seconds = time.monotonic() - start
    run.record.stage(name, ok=ok, seconds=round(seconds, 1), note=note.replace("|", "/"))
    run.record.log(f"== {name}: {'passed' if ok else 'FAILED'} in {seconds:.0f} s: {note}")
    return ok
