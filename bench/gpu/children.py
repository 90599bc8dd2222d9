"""A stage's measurements in a process of their own, begun anew behind whatever ends it.

An error of CUDA that stays, a crash or a call that never returns costs the entry that was under
way, not those after it: the entry is filed with the reason, and the next process skips it.
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO, Final

from bench.gpu.commands import start, stop, wait
from bench.gpu.run import Run, StageFailed

#: Seconds a part of an entry may take before its process counts as hanging; compilation included.
LIMITS: Final = {"kernels": 200.0, "executor": 240.0}
#: Seconds behind the deadline until a process that should have ended by itself is ended.
GRACE: Final = 3.0
_POLL: Final = 0.1


def command(run: Run, stage: str) -> list[str]:
    """Measures what of a stage the record does not have yet."""
    words = [sys.executable, "-m", "bench.gpu", "--out", str(run.record.folder.resolve())]
    # By the clock of the machine: the process that is begun takes seconds before it can read it.
    until = time.time() + run.deadline - time.monotonic()
    words += ["--stage", stage, "--child", f"{until:.3f}"]
    words += ["--full"] if run.full else []
    words += ["--dry-run"] if run.dry else []
    for folder in run.data_dirs:
        words += ["--data-dir", folder]
    return words + (["--epochs", str(run.epochs)] if run.epochs is not None else [])


def supervise(run: Run, stage: str) -> None:
    """Runs a stage's processes until nothing is left or the time is up.

    Raises:
        StageFailed: One ended before it had begun with an entry.
    """
    # What a run that was ended left under way is nobody's fault now.
    run.record.finished()
    # Nor is what it meant to do what this one does.
    run.record.plan(stage, [])
    while time.monotonic() < run.deadline:
        reason = _one(run, stage)
        run.record.reload()
        if reason is None:
            break
        run.record.log(f"  {stage}: a process ended: {reason}")
        if not blame(run, reason):
            raise StageFailed(reason)
    # Nor what the deadline cut.
    run.record.finished()


def blame(run: Run, reason: str) -> bool:
    """Files what was under way with the reason why its process ended; False if nothing was."""
    found = run.record.under_way()
    if found is None:
        return False
    section, name, part = found["section"], found["name"], found["part"]
    if found["optional"] and part not in run.record.without.get(name, {}):
        run.record.leave_out(name, part, reason)
    else:
        run.record.file(section, name, {"failure": f"{part}: {reason}"})
    return True


def _one(run: Run, stage: str) -> str | None:
    """Why one process ended before its time; None where it was through, or its time was."""
    with tempfile.TemporaryFile("w+") as said:
        process = start(command(run, stage), {}, output=None, errors=said)
        try:
            stopped = _watch(run, stage, process.poll)
        finally:
            # Also where this process is interrupted; and compilers it may have left behind.
            stop(process)
        status = wait(process)
        text = _read(said)
    if text.strip():
        run.record.log(text[-3000:])
    if stopped is not None or status is None:
        return stopped or None
    return None if status == 0 else f"{_status(status)}: {last_words(text)}"


def _watch(run: Run, stage: str, poll: Callable[[], int | None]) -> str | None:
    """None when the process has ended, "" when its time is up, else why it must be ended."""
    limit = LIMITS.get(stage)
    while poll() is None:
        if time.monotonic() > run.deadline + GRACE:
            return ""
        found = run.record.under_way()
        if limit is not None and found is not None and time.time() - found["since"] > limit:
            return f"no end after {limit:.0f} s"
        time.sleep(_POLL)
    return None


def _read(said: IO[str]) -> str:
    said.seek(0)
    return said.read()


def _status(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit {status}"


def last_words(text: str) -> str:
    """The line of a process's errors that says most: of the last exception, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if re.match(r"[\w.]*(?:Error|Exception|Lost)\b", line)]
    return (named or lines or ["it said nothing"])[-1][:300]
