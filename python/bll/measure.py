"""Measured time of a model's parts."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from bll.hooks import remove_hooks


def unit_seconds(
    model: nn.Module,
    names: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    repeats: int = 5,
) -> dict[str, float]:
    """Return the forward seconds of each named module on these inputs, the least of the repeats.

    A full copy of the model runs on the inputs' device; the model, its statistics and the random
    state stay as they are. On an accelerator every module is waited for.

    Args:
        model: The model.
        names: Modules that the forward pass calls once.
        args: Positional inputs.
        kwargs: Keyword inputs.
        repeats: Timed forward passes, after one that is not.
    """
    with torch.random.fork_rng():
        twin = copy.deepcopy(model)
        remove_hooks(twin)
        timers = {name: _Timer(twin.get_submodule(name)) for name in names}
        for _ in range(repeats + 1):
            twin(*args, **kwargs)
    return {name: min(timer.seconds[1:]) for name, timer in timers.items()}


class _Timer:
    def __init__(self, module: nn.Module) -> None:
        self.seconds: list[float] = []
        self.started = 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, module: nn.Module, args: Any) -> None:
        self.started = _now()

    def _stop(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seconds.append(_now() - self.started)


def _now() -> float:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
