"""What the processes of a stage do: measure what the record does not have yet."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Final

from bench.gpu import executor, kernels, serving, table1
from bench.gpu.run import DeviceLost, Run
from bench.gpu.timing import CudaTimer, HostTimer


def _kernels(run: Run) -> None:
    kernels.run(
        run.record,
        HostTimer() if run.dry else CudaTimer(),
        run.device,
        serving.backends(run.record.now, run.dry),
        full=run.full,
        deadline=run.deadline,
        tiny=run.dry,
    )


def _executor(run: Run) -> None:
    executor.run(run.record, run.device, deadline=run.deadline, tiny=run.dry)


def _table1(run: Run) -> None:
    """Files the stage itself, since only training knows how it ended."""
    start = time.monotonic()
    try:
        note, left = table1.run(
            run.record, run.data_dirs, deadline=run.deadline, epochs=run.epochs, dry=run.dry
        )
        result = "not finished" if left else "passed"
    except table1.Unfinished as error:
        note, result = str(error), "FAILED"
    seconds = round(time.monotonic() - start, 1)
    run.record.stage("table1", result=result, seconds=seconds, note=note.replace("|", "/"))


WORK: Final[dict[str, Callable[[Run], None]]] = {
    "kernels": _kernels,
    "executor": _executor,
    "table1": _table1,
}


def perform(stage: str, run: Run) -> int:
    """Does a stage's work in this process; 1 where it cannot go on with the device."""
    # This process has loaded what is built now.
    run.record.now |= serving.found()
    try:
        WORK[stage](run)
    except DeviceLost as error:
        print(f"DeviceLost: {error}", file=sys.stderr)
        return 1
    return 0
