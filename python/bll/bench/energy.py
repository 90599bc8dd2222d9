"""Joules per step of several forms: trials in turn, idle power measured apart, gross and net."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from bll.bench.energy_counters import Counter, CounterReset, NoCounter
from bll.bench.energy_windows import (
    Clock,
    RealClock,
    Step,
    Window,
    idle_window,
    tick_aligned_window,
)

MIN_WINDOW_SECONDS = 5.0
MIN_TRIALS = 5
IDLE_SECONDS = 10.0
COOLDOWN_SECONDS = 3.0
CHUNK_SECONDS = 0.01


@dataclass(frozen=True)
class Energy:
    """Energy of a step, as medians over the trials.

    Attributes:
        gross_joules_per_step: All the device took.
        net_joules_per_step: Without what it takes when idle.
        spread: (largest - smallest) / median of the gross figure over the trials.
        watts: Gross mean power.
        idle_watts: Of the idle window.
        seconds_per_step: Wall clock.
        error_bound: Largest relative error from the edges of a window.
        trials: Gross joules per step of every trial.
        discarded: Trials in which the counter was reset.
        counter: Name of the counter.
        picojoules_per_byte: Net energy by counted byte; None where no bytes are counted.
        zeus_joules_per_step: The same trials as zeus saw them; None where it is not there.
        zeus_reason: Why not.
    """

    gross_joules_per_step: float
    net_joules_per_step: float
    spread: float
    watts: float
    idle_watts: float
    seconds_per_step: float
    error_bound: float
    trials: list[float]
    discarded: int
    counter: str
    picojoules_per_byte: float | None = None
    zeus_joules_per_step: float | None = None
    zeus_reason: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)

    def per_call(self, calls: int) -> Energy:
        """The same where a step was that many calls; energy by byte stays what it is."""
        seen = self.zeus_joules_per_step
        return replace(
            self,
            gross_joules_per_step=self.gross_joules_per_step / calls,
            net_joules_per_step=self.net_joules_per_step / calls,
            seconds_per_step=self.seconds_per_step / calls,
            trials=[trial / calls for trial in self.trials],
            zeus_joules_per_step=None if seen is None else seen / calls,
        )


class Check(Protocol):
    """Another reader of the same windows."""

    def begin(self) -> None:
        """A window begins."""

    def end(self) -> float | None:
        """Its joules."""


@dataclass(frozen=True)
class EnergyProtocol:
    """How energy is measured; the defaults are the least that is trusted."""

    window_seconds: float = MIN_WINDOW_SECONDS
    trials: int = MIN_TRIALS
    idle_seconds: float = IDLE_SECONDS
    cooldown_seconds: float = COOLDOWN_SECONDS
    chunk_seconds: float = CHUNK_SECONDS


def measure_energy(
    steps: Mapping[str, Step],
    counter: Counter,
    *,
    moved_bytes: Mapping[str, int] | None = None,
    protocol: EnergyProtocol | None = None,
    clock: Clock | None = None,
    check: Check | None = None,
    check_reason: str | None = None,
) -> dict[str, Energy]:
    """Joules per step of several forms, their trials in turn.

    Args:
        steps: One step of each form, by name; its work is done when it returns.
        counter: Of the device.
        moved_bytes: Counted bytes of a step, by name.
        protocol: Lengths and numbers.
        clock: The time.
        check: Another reader of the same windows.
        check_reason: Why there is none.

    Raises:
        NoCounter: The counter does not change, or every trial was discarded.
    """
    chosen, clock = protocol or EnergyProtocol(), clock or RealClock()
    idle = idle_window(counter, chosen.idle_seconds, chosen.chunk_seconds, clock)
    chunks = {name: _chunk(step, chosen.chunk_seconds, clock) for name, step in steps.items()}
    windows: dict[str, list[Window]] = {name: [] for name in steps}
    seen: dict[str, list[float]] = {name: [] for name in steps}
    discarded = dict.fromkeys(steps, 0)
    for _ in range(chosen.trials):
        for name, step in steps.items():
            clock.sleep(chosen.cooldown_seconds)
            try:
                window, other = _trial(counter, step, chunks[name], chosen, clock, check)
            except CounterReset:
                discarded[name] += 1
                continue
            windows[name].append(window)
            if other is not None:
                seen[name].append(other)
    return {
        name: _summary(
            windows[name],
            idle.watts,
            discarded[name],
            counter.name,
            (moved_bytes or {}).get(name),
            seen[name],
            check_reason,
        )
        for name in steps
    }


def _chunk(step: Step, seconds: float, clock: Clock) -> int:
    step()
    count, began = 0, clock.now()
    while clock.now() - began < seconds:
        step()
        count += 1
    return max(1, count)


def _trial(
    counter: Counter,
    step: Step,
    chunk: int,
    chosen: EnergyProtocol,
    clock: Clock,
    check: Check | None,
) -> tuple[Window, float | None]:
    if check is None:
        return tick_aligned_window(counter, step, chunk, chosen.window_seconds, clock), None
    made = 0

    def counted() -> None:
        nonlocal made
        step()
        made += 1

    check.begin()
    window = tick_aligned_window(counter, counted, chunk, chosen.window_seconds, clock)
    other = check.end()
    return window, None if other is None else other / made


def _summary(
    windows: Sequence[Window],
    idle_watts: float,
    discarded: int,
    name: str,
    moved: int | None,
    seen: Sequence[float],
    check_reason: str | None,
) -> Energy:
    if not windows:
        raise NoCounter(f"{name}: every trial was discarded, the counter was reset in each")
    gross = [window.joules_per_step for window in windows]
    seconds = statistics.median(window.seconds / window.steps for window in windows)
    net = statistics.median(gross) - idle_watts * seconds
    return Energy(
        gross_joules_per_step=statistics.median(gross),
        net_joules_per_step=net,
        spread=(max(gross) - min(gross)) / statistics.median(gross),
        watts=statistics.median(window.watts for window in windows),
        idle_watts=idle_watts,
        seconds_per_step=seconds,
        error_bound=max(window.error_bound for window in windows),
        trials=gross,
        discarded=discarded,
        counter=name,
        picojoules_per_byte=1e12 * net / moved if moved else None,
        zeus_joules_per_step=statistics.median(seen) if seen else None,
        zeus_reason=None if seen else check_reason or "zeus was not asked",
    )
