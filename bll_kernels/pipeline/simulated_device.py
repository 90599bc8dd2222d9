"""A device without hardware: work waits in lanes and runs in a random order that marks allow.

What runs right here in every order is ordered by its marks alone, as it must be on a GPU. Memory
given back is filled with NaN at once, as if something else had been allocated there.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from bll_kernels.pipeline.device import Work
from bll_kernels.pipeline.events import Clock, HostClock
from bll_kernels.pipeline.step import GENERATOR


@dataclass(eq=False)
class SimulatedMark:
    """Reached when the lane it was recorded in comes to it."""

    reached: bool = False


@dataclass(eq=False)
class SimulatedLane:
    """Work and marks in order; a mark with True is waited for, one with False is recorded."""

    queue: deque[Work | tuple[SimulatedMark, bool]] = field(default_factory=deque)


class SimulatedDevice:
    """See the module, and `Device` for the methods.

    Args:
        seed: Of the order.
    """

    def __init__(self, seed: int = 0) -> None:
        self.generator = random.Random(seed)
        self.lanes: dict[int, SimulatedLane] = {}

    def lane(self, number: int) -> SimulatedLane:
        """See `Device`; the caller's is number -1."""
        return self.lanes.setdefault(number, SimulatedLane())

    def caller(self) -> SimulatedLane:
        """See `Device`."""
        return self.lane(-1)

    def launch(self, lane: SimulatedLane, work: Work) -> None:
        """See `Device`."""
        lane.queue.append(work)

    def record(self, lane: SimulatedLane) -> SimulatedMark:
        """See `Device`."""
        mark = SimulatedMark()
        lane.queue.append((mark, False))
        return mark

    def wait(self, lane: SimulatedLane, mark: SimulatedMark) -> None:
        """See `Device`."""
        lane.queue.append((mark, True))

    def retire(self, tensor: Tensor) -> None:
        """See `Device`; overwrites the memory."""
        with torch.no_grad():
            # Not through the version counter: autograd would notice what hardware does not.
            tensor.data.fill_(float("nan") if tensor.is_floating_point() else 0)

    def settle(self) -> None:
        """Runs everything.

        Raises:
            RuntimeError: lanes wait for each other, or for a mark that nobody reaches.
            Exception: whatever the work raised first; the rest is dropped.
        """
        try:
            while True:
                waiting = [lane for lane in self.lanes.values() if lane.queue]
                if not waiting:
                    return
                ready = [lane for lane in waiting if _may_go_on(lane)]
                if not ready:
                    raise RuntimeError(f"{len(waiting)} lanes wait for marks that nobody reaches")
                entry = self.generator.choice(ready).queue.popleft()
                if isinstance(entry, tuple):
                    entry[0].reached = True
                else:
                    entry()
        finally:
            for lane in self.lanes.values():
                lane.queue.clear()

    def synchronize(self) -> None:
        """See `Device`."""
        self.settle()

    def random_stream(self) -> torch.Generator:
        """See `Device`."""
        return torch.Generator()

    @contextmanager
    def drawing(self, stream: torch.Generator) -> Iterator[None]:
        """See `Device`; the process has one generator, whose state is lent."""
        with GENERATOR:
            before = torch.get_rng_state()
            torch.set_rng_state(stream.get_state())
            try:
                yield
                stream.set_state(torch.get_rng_state())
            finally:
                torch.set_rng_state(before)

    def capture(self, work: Work, streams: Sequence[torch.Generator] = ()) -> Work:
        """See `Device`; every replay takes an order of its own."""
        self.settle()
        try:
            work()
            recorded = {number: list(lane.queue) for number, lane in self.lanes.items()}
        finally:
            for lane in self.lanes.values():
                lane.queue.clear()

        def replay() -> None:
            inner = SimulatedDevice()
            inner.generator = self.generator
            marks: dict[SimulatedMark, SimulatedMark] = {}
            for number, entries in recorded.items():
                for entry in entries:
                    if isinstance(entry, tuple):
                        entry = (marks.setdefault(entry[0], SimulatedMark()), entry[1])
                    inner.lane(number).queue.append(entry)
            self.launch(self.caller(), inner.settle)

        return replay

    def clock(self) -> Clock:
        """See `Device`."""
        return HostClock()


def _may_go_on(lane: SimulatedLane) -> bool:
    entry = lane.queue[0]
    return not isinstance(entry, tuple) or not entry[1] or entry[0].reached
