"""A device whose power is known, and a counter of it that ticks, is noisy, and may wrap."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from bll.bench.energy_counters import Monotone


@dataclass
class SimulatedDevice:
    """A clock, a workload and a counter in one.

    The counter takes over the true energy at ticks of irregular length, lags behind by `lag`, adds
    noise to each value it takes over, and starts again from 0 at `wrap`.
    """

    idle_watts: float = 80.0
    busy_watts: float = 400.0
    step_seconds: float = 0.001
    step_jitter: float = 0.05
    tick: tuple[float, float] = (0.02, 0.1)
    noise_joules: float = 0.0
    wrap: float | None = None
    start: float = 0.0
    seed: int = 0
    name: str = "simulated"
    reset_at: float | None = None
    stopped: bool = False
    time: float = 0.0
    true_joules: float = 0.0
    steps: int = 0
    shown: float = 0.0
    next_tick: float = 0.0
    random: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.random.seed(self.seed)
        self.true_joules = self.shown = self.start
        self.next_tick = self.random.uniform(*self.tick)

    def _advance(self, seconds: float, watts: float) -> None:
        end = self.time + seconds
        while self.next_tick <= end and not self.stopped:
            self.true_joules += (self.next_tick - self.time) * watts
            self.time = self.next_tick
            noise = self.random.gauss(0.0, self.noise_joules) if self.noise_joules else 0.0
            self.shown = max(self.shown, self.true_joules + noise)
            if self.reset_at is not None and self.time > self.reset_at:
                self.true_joules = self.shown = 0.0
                self.reset_at = None
            self.next_tick += self.random.uniform(*self.tick)
        self.true_joules += (end - self.time) * watts
        self.time = end

    def step(self) -> None:
        """One step of work; how long it takes varies by the jitter to either side."""
        factor = self.random.uniform(1 - self.step_jitter, 1 + self.step_jitter)
        self._advance(self.step_seconds * factor, self.busy_watts)
        self.steps += 1

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self._advance(seconds, self.idle_watts)

    def raw(self) -> float:
        """What the register holds: whole millijoules."""
        value = self.shown if self.wrap is None else self.shown % self.wrap
        return round(value, 3)

    def joules(self) -> float:
        if not hasattr(self, "_count"):
            self._count = Monotone(self.raw, self.wrap)
        return self._count.joules()

    @property
    def true_joules_per_step(self) -> float:
        return self.busy_watts * self.step_seconds
