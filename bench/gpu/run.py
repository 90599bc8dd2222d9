"""What the stages of a run share, and how one ends."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from bench.gpu.record import Record


class StageFailed(Exception):
    """Why a stage did not pass."""


class NotFinished(Exception):
    """What a stage has left for another run; nothing that it did reach was wrong."""


class DeviceLost(Exception):
    """An error after which every call of this process to the GPU fails."""


@dataclass(frozen=True)
class Run:
    """What the stages share."""

    record: Record
    deadline: float  # of time.monotonic(); of the stage that runs
    full: bool  # one stage alone, all of it
    dry: bool  # tiny shapes on the CPU, to try the driver itself
    data_dirs: tuple[str, ...] = ()  # where image files lie
    epochs: int | None = None  # of table1, in place of its recipes'

    @property
    def device(self) -> str:
        """The device under test."""
        return "cpu" if self.dry else "cuda"

    def seconds_left(self) -> float:
        """Until the deadline; at least one, so that a late command fails by its own time limit."""
        return max(1.0, self.deadline - time.monotonic())


def first_line(error: BaseException) -> str:
    """An exception in one line; those of CUDA go on with advice."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0][:240]}"


def require_device(device: str, error: BaseException) -> None:
    """Tells an error that concerns one call from one after which this process cannot go on.

    Raises:
        DeviceLost: Waiting for the device fails too.
    """
    if device != "cuda":
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as lost:
        raise DeviceLost(first_line(error)) from lost
