"""The energy of a whole training run, for its summary."""

from __future__ import annotations

from typing import Any

import torch

from bll.bench.energy_counters import Counter, CounterReset, NoCounter, find_counter


class RunEnergy:
    """Reads a counter when training begins and when it ends.

    What the device takes between the two, idle power and evaluation included; nothing is
    subtracted. The edges are wrong by at most two ticks of the counter (`bll.bench.energy`).

    Args:
        device: That trains.
        resumed: Whether steps were made before this process.
        counter: Instead of the device's own.
    """

    def __init__(
        self, device: torch.device, *, resumed: bool = False, counter: Counter | None = None
    ) -> None:
        self._counter: Counter | None = None
        self._begin: float | None = None
        self.joules: float | None = None
        self.name: str | None = None
        self.reason: str | None = None
        if resumed:
            self.reason = "the run was resumed; energy before that was not counted"
            return
        try:
            self._counter = counter or find_counter(str(device))
            self._begin = self._counter.joules()
        except (NoCounter, CounterReset) as error:
            self._give_up(error)

    def poll(self) -> None:
        """Reads the counter, which must happen at least once between two wrap-arounds."""
        if self._counter is None or self._begin is None:
            return
        try:
            self.joules = self._counter.joules() - self._begin
            self.name = self._counter.name
        except (NoCounter, CounterReset, OSError) as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._counter = self.joules = self.name = None
        self.reason = str(error)

    def to_record(self) -> dict[str, Any]:
        """Fields of a summary."""
        return {
            "energy_j": self.joules,
            "energy_reason": None if self.joules is not None else self.reason,
            "energy_counter": self.name,
        }
