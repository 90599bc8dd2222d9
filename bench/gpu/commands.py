"""Other programs: started in a group of their own, ended with all that they have started."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from typing import IO, Any

from bench.gpu.record import ROOT
from bench.gpu.run import Run, StageFailed

Stream = IO[Any] | int | None

#: Of a command's output, what the log keeps.
LOGGED = 6000
#: Seconds that a command may take to end once it is stopped; a driver can hold it for good.
ENDING = 20.0


class Late(StageFailed):
    """A command that was not done in time.

    Args:
        seconds: That it had.
        output: What it had said until then.
    """

    def __init__(self, seconds: float, output: str) -> None:
        super().__init__(f"not done after {seconds:.0f} s")
        self.output = output


class Failed(StageFailed):
    """A command that ended with another status than 0.

    Args:
        status: Of its end.
        output: All it said.
    """

    def __init__(self, status: int, output: str) -> None:
        last = output.strip().splitlines()[-1:] or ["no output"]
        super().__init__(f"exit {status}: {last[0][:200]}")
        self.status, self.output = status, output


def start(
    command: Sequence[str],
    settings: Mapping[str, str],
    *,
    output: Stream,
    errors: Stream = subprocess.STDOUT,
) -> subprocess.Popen[str]:
    """Starts a command in the project's root, with this checkout's packages in front.

    Args:
        command: The program and its arguments.
        settings: Environment variables beside those of this process.
        output: Where standard output goes; None: where that of this process goes.
        errors: Where standard error goes.
    """
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'python'}", **settings}
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=output,
        stderr=errors,
        text=True,
        start_new_session=True,
    )


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a command and what it has started, which would run beside the next measurements."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait(process: subprocess.Popen[str]) -> int | None:
    """Status of a command that has ended or was stopped; None where the driver keeps it."""
    try:
        return process.wait(timeout=ENDING)
    except subprocess.TimeoutExpired:
        return None


def _rest(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=ENDING)[0]
    except subprocess.TimeoutExpired:
        return ""


def execute(
    run: Run,
    command: Sequence[str],
    settings: Mapping[str, str] | None = None,
    *,
    limit: float | None = None,
) -> str:
    """Runs a command to its end; the end of its output in the log too.

    Args:
        run: Whose deadline ends it.
        command: The program and its arguments.
        settings: Environment variables beside those of this process.
        limit: Seconds it may take, if less than until the deadline.

    Raises:
        Late: It ran past the time limit.
        Failed: It failed.
    """
    seconds = run.seconds_left() if limit is None else min(limit, run.seconds_left())
    process = start(command, settings or {}, output=subprocess.PIPE)
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        stop(process)
        output = _rest(process)
        run.record.log(output[-LOGGED:])
        raise Late(seconds, output) from error
    finally:
        # Also what it has left behind, and where this process is interrupted.
        stop(process)
    run.record.log(output[-LOGGED:])
    if process.returncode != 0:
        raise Failed(process.returncode, output)
    return output
