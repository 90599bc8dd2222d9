"""Joules per step: windows that begin and end at a tick of the counter, idle measured apart.

An energy counter changes at ticks (about every 100 ms on NVIDIA GPUs). A window that reads it at
any two moments is wrong by up to two ticks of energy. These windows begin when a change of the
counter is seen and end when a later one is, with the steps running all the time. A change is seen
at most one poll late, and a poll follows every chunk of steps. So with chunks of `c` seconds in a
window of `T` seconds the joules per step are wrong by at most a factor of c / T, and what the
sensor itself is wrong by (`Window.error_bound`; docs/benchmarks.md).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bll.bench.energy_counters import Counter, NoCounter

Step = Callable[[], object]

#: A counter that has not changed for so long while steps run is taken to be dead.
DEAD_SECONDS = 2.0


class Clock(Protocol):
    """Time, so that tests can make their own."""

    def now(self) -> float:
        """Seconds from any fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """See `Clock`."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """See `Clock`."""
        time.sleep(seconds)


@dataclass(frozen=True)
class Window:
    """Energy between two ticks.

    Attributes:
        joules: Of the window.
        seconds: Its length.
        steps: Made in it.
        error_bound: Largest relative error of joules per step that comes from the edges.
    """

    joules: float
    seconds: float
    steps: int
    error_bound: float

    @property
    def watts(self) -> float:
        """Mean power."""
        return self.joules / self.seconds

    @property
    def joules_per_step(self) -> float:
        """Gross energy of a step."""
        return self.joules / self.steps


def tick_aligned_window(
    counter: Counter, step: Step, chunk: int, seconds: float, clock: Clock
) -> Window:
    """Runs steps from one tick of the counter to another, `seconds` or more later.

    Args:
        counter: What is read.
        step: One step; when it returns, its work is done or is waited for by the chunk's last step.
        chunk: Steps between two readings.
        seconds: Least length.
        clock: The time.

    Raises:
        NoCounter: The counter does not change.
        CounterReset: The counter went backwards.
    """
    _, start, joules, longest = _run_to_tick(counter, step, chunk, clock, until=clock.now())
    begin = joules
    steps, end, joules, slowest = _run_to_tick(counter, step, chunk, clock, until=start + seconds)
    length = end - start
    return Window(joules - begin, length, steps, max(longest, slowest) / length)


def _run_to_tick(
    counter: Counter, step: Step, chunk: int, clock: Clock, until: float
) -> tuple[int, float, float, float]:
    """Steps, time, joules and the longest chunk, when the first change after `until` is seen."""
    steps, longest, changed = 0, 0.0, clock.now()
    before = counter.joules()
    while True:
        began = clock.now()
        for _ in range(chunk):
            step()
        steps += chunk
        now, joules = clock.now(), counter.joules()
        longest = max(longest, now - began)
        if joules != before:
            changed = now
            # Beyond the end by now, and not only at it when the chunk began: the change is new.
            if began >= until:
                return steps, now, joules, longest
        elif now - changed > DEAD_SECONDS + (now - began):
            raise NoCounter(f"{counter.name} did not change for {now - changed:.1f} s")
        before = joules


def idle_window(counter: Counter, seconds: float, poll: float, clock: Clock) -> Window:
    """A window in which nothing runs; its `steps` are polls."""
    return tick_aligned_window(counter, lambda: clock.sleep(poll), 1, seconds, clock)
