"""What a run did when: events recorded only when asked for, and their Chrome or Perfetto JSON."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.step import LocalStep


@dataclass(frozen=True)
class Event:
    """One operation that was run.

    Attributes:
        rule: How the network learnt: "bll" for local steps, "bp" for backpropagation.
        block: Number of the block.
        block_name: Its name.
        micro_batch: Micro-batch, counted through the recorded run.
        kind: What was done.
        worker: Thread, or stream, that did it.
        start: Nanoseconds of the recorder's clock.
        end: Nanoseconds of the recorder's clock.
    """

    rule: str
    block: int
    block_name: str
    micro_batch: int
    kind: Kind
    worker: str
    start: int
    end: int

    @property
    def name(self) -> str:
        """As "bll::backward::layer3"."""
        return f"{self.rule}::{self.kind.value}::{self.block_name}"


class Clock(Protocol):
    """Marks instants, of the host or of a stream."""

    def mark(self) -> Any:
        """This instant, as the device sees it."""

    def nanoseconds(self, mark: Any) -> int:
        """Time of a mark; may wait for the device."""


class HostClock:
    """The processor's clock."""

    def mark(self) -> int:
        """Nanoseconds now."""
        return time.perf_counter_ns()

    def nanoseconds(self, mark: int) -> int:
        """See `Clock`."""
        return mark


class Recorder:
    """Collects the events of runs.

    Args:
        rule: See `Event`.
        clock: Of the device; by default the host's.
    """

    def __init__(self, rule: str = "bll", clock: Clock | None = None) -> None:
        self.rule = rule
        self.clock: Clock = HostClock() if clock is None else clock
        self._marks: list[tuple[int, str, int, Kind, str, Any, Any]] = []

    @contextmanager
    def operation(self, block: int, name: str, micro_batch: int, kind: Kind) -> Iterator[None]:
        """Records what happens inside; nothing where it fails. Any thread may do so."""
        start = self.clock.mark()
        yield
        end = self.clock.mark()
        worker = threading.current_thread().name
        self._marks.append((block, name, micro_batch, kind, worker, start, end))

    def watch(self, blocks: Sequence[Block], steps: Sequence[LocalStep]) -> list[LocalStep]:
        """The same steps, recorded; for one run, in which each block counts its micro-batches."""
        return [
            _RecordedStep(self, index, block.name, step)
            for index, (block, step) in enumerate(zip(blocks, steps, strict=True))
        ]

    def events(self) -> list[Event]:
        """Everything recorded so far, by start."""
        found = [
            Event(
                self.rule,
                block,
                name,
                micro_batch,
                kind,
                worker,
                self.clock.nanoseconds(start),
                self.clock.nanoseconds(end),
            )
            for block, name, micro_batch, kind, worker, start, end in self._marks
        ]
        return sorted(found, key=lambda event: event.start)


class _RecordedStep:
    """A local step whose parts are recorded."""

    def __init__(self, recorder: Recorder, index: int, name: str, step: LocalStep) -> None:
        self.step = step
        self.recorder = recorder
        self.index = index
        self.name = name
        self.micro_batch = -1

    def _operation(self, kind: Kind) -> Any:
        return self.recorder.operation(self.index, self.name, self.micro_batch, kind)

    @property
    def path(self) -> str:
        return self.step.path

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        self.micro_batch += 1
        with self._operation(Kind.FORWARD):
            return self.step.forward(x, labels)

    def loss(self, saved: Any) -> tuple[Tensor, Any]:
        with self._operation(Kind.LOSS):
            return self.step.loss(saved)

    def backward(self, saved: Any) -> None:
        with self._operation(Kind.BACKWARD):
            self.step.backward(saved)

    def update(self) -> None:
        with self._operation(Kind.UPDATE):
            self.step.update()

    def drop(self) -> None:
        self.step.drop()


def chrome_trace(runs: Mapping[str, Sequence[Event]]) -> dict[str, Any]:
    """Runs in the format of Chrome and Perfetto: a process for each run, a thread for each block.

    Every run starts at 0. Times are in microseconds.

    Args:
        runs: Events by name of the run.

    Returns:
        Values that JSON can hold.
    """
    found: list[dict[str, Any]] = []
    for process, (run, events) in enumerate(runs.items(), start=1):
        names = {event.block: event.block_name for event in events}
        found.append({"ph": "M", "name": "process_name", "pid": process, "args": {"name": run}})
        for block, name in sorted(names.items()):
            labels = {"ph": "M", "pid": process, "tid": block}
            found.append({**labels, "name": "thread_name", "args": {"name": name}})
            found.append({**labels, "name": "thread_sort_index", "args": {"sort_index": block}})
        first = min((event.start for event in events), default=0)
        for event in events:
            found.append(
                {
                    "ph": "X",
                    "name": event.name,
                    "cat": event.kind.value,
                    "pid": process,
                    "tid": event.block,
                    "ts": (event.start - first) / 1e3,
                    "dur": (event.end - event.start) / 1e3,
                    "args": {"micro_batch": event.micro_batch, "worker": event.worker},
                }
            )
    return {"traceEvents": found, "displayTimeUnit": "ms"}
