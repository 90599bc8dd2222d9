"""Sums and timings of a run, kept on the device until somebody asks."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch


class LossMeter:
    """Sums of the whole loss and of every block's loss over the steps of an epoch.

    The sums stay on the device in float64: reading them is the only synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.names: tuple[str, ...] = ()
        self.steps = 0
        self.sums = torch.zeros(1, dtype=torch.float64, device=device)

    def add(self, loss: torch.Tensor, block_losses: Mapping[str, torch.Tensor]) -> None:
        """Count one step.

        Args:
            loss: The whole loss, 0-dim.
            block_losses: Loss of every block by name, each 0-dim; the same names at every step.
        """
        if not self.steps:
            self.names = tuple(block_losses)
            self.sums = torch.zeros(1 + len(block_losses), dtype=torch.float64, device=self._device)
        self.sums += torch.stack([loss.detach(), *(x.detach() for x in block_losses.values())])
        self.steps += 1

    def restore(self, names: tuple[str, ...], steps: int, sums: torch.Tensor) -> None:
        """Continue from sums read earlier; ``sums`` is float64 ``[1 + len(names)]``."""
        self.names, self.steps = names, steps
        self.sums = sums.to(self._device)

    def reset(self) -> None:
        """Forget all steps."""
        self.steps = 0
        self.sums = torch.zeros(1 + len(self.names), dtype=torch.float64, device=self._device)

    def means(self) -> tuple[float, dict[str, float]]:
        """Mean loss per step, and that of every block by name; zero when no step was counted."""
        values = (self.sums / max(self.steps, 1)).tolist()
        return values[0], dict(zip(self.names, values[1:], strict=True))


class StepTimer:
    """Duration of every training step: wall clock on the CPU, events on a GPU.

    Events are read when the durations are asked for, so timing adds no synchronisation.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._durations: list[float] = []
        self._pending: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._started = 0.0

    def start(self) -> None:
        """A step begins."""
        if self._cuda:
            first = torch.cuda.Event(enable_timing=True)
            first.record()
            self._pending.append((first, torch.cuda.Event(enable_timing=True)))
        else:
            self._started = time.perf_counter()

    def stop(self) -> None:
        """The step that was started ends."""
        if self._cuda:
            self._pending[-1][1].record()
        else:
            self._durations.append(1e3 * (time.perf_counter() - self._started))

    def restore(self, milliseconds: list[float]) -> None:
        """Continue from durations read earlier."""
        self._durations = list(milliseconds)

    def milliseconds(self) -> list[float]:
        """Duration of every step so far."""
        for first, last in self._pending:
            last.synchronize()
            self._durations.append(first.elapsed_time(last))
        self._pending.clear()
        return self._durations
