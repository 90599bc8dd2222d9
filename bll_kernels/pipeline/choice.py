"""Which mode is fastest here, found out while training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Final

#: Runs of each mode before those that count, and runs that count. The modes take turns.
WARM_UP: Final = 3
TRIALS: Final = 7


class Choice:
    """Measures modes in turn and keeps the fastest.

    Every trial is an ordinary step of training: the modes end with the same bits, so the result
    does not depend on which is tried when, or chosen.

    Args:
        modes: At least one; where two are equally fast the first is kept.
    """

    def __init__(self, modes: Sequence[str]) -> None:
        if not modes:
            raise ValueError("modes: expected one or more")
        self.modes = list(modes)
        self.dropped: dict[str, str] = {}
        self.runs = {mode: 0 for mode in modes}
        self.seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        self._chosen: str | None = None

    @property
    def chosen(self) -> str | None:
        """The mode that is kept; None while they are measured."""
        # Found once: it is asked before every run, and small steps take less than some medians.
        if self._chosen is not None:
            return self._chosen
        if len(self.modes) == 1:
            self._chosen = self.modes[0]
        elif all(len(self.seconds[mode]) >= TRIALS for mode in self.modes):
            self._chosen = min(self.modes, key=lambda mode: statistics.median(self.seconds[mode]))
        return self._chosen

    @property
    def mode(self) -> str:
        """The mode of the next run."""
        return self.chosen or min(self.modes, key=lambda mode: self.runs[mode])

    def measured(self, mode: str, seconds: float, samples: int) -> None:
        """Takes the time of a run.

        Args:
            mode: How it ran.
            seconds: Its duration.
            samples: Samples it trained on.
        """
        self.runs[mode] += 1
        if self.runs[mode] > WARM_UP:
            self.seconds[mode].append(seconds / samples)

    def drop(self, mode: str, reason: str) -> None:
        """Takes a mode out that cannot run here.

        Raises:
            ValueError: it is the last one.
        """
        if self.modes == [mode]:
            raise ValueError(f"mode: {mode} cannot run: {reason}")
        self.modes.remove(mode)
        self._chosen = None
        self.dropped[mode] = reason

    def __str__(self) -> str:
        chosen = self.chosen
        medians = [
            f"{mode} {1e6 * statistics.median(found):.2f}"
            for mode, found in self.seconds.items()
            if found and mode in self.modes
        ]
        text = f"{chosen}" if chosen else "not chosen yet"
        if medians:
            text += f" (us per sample: {', '.join(medians)}; {TRIALS} runs each)"
        for mode, reason in self.dropped.items():
            text += f"; not {mode}: {reason}"
        return text
