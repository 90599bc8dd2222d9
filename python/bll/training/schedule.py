"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

WARM_UP = 0.3
START_DIVISOR = 25.0
END_DIVISOR = 2.5e5


def one_cycle(step: int, total: int, peak: float) -> float:
    """Learning rate of step ``step`` in a run of ``total`` steps.

    It rises from ``peak / 25`` to ``peak`` over the first 30 % of the steps and falls to
    ``peak / 250000`` at the last one, both along half a cosine (Smith and Topin,
    "Super-convergence", 2018).

    Args:
        step: Number of steps already made, 0 to ``total - 1``.
        total: Number of steps of the run.
        peak: Highest learning rate.

    Raises:
        ValueError: ``step`` is not a step of the run.
    """
    _check_step(step, total)
    top = WARM_UP * total - 1.0
    if step <= top:
        return _cosine(peak / START_DIVISOR, peak, step / top if top > 0 else 1.0)
    return _cosine(peak, peak / END_DIVISOR, (step - top) / (total - 1 - top))


def cosine(step: int, total: int, peak: float) -> float:
    """Learning rate that falls from ``peak`` at the first step to 0 after the last, a half cosine.

    Loshchilov and Hutter, "SGDR", 2017, without restarts. Arguments and errors: see `one_cycle`.
    """
    _check_step(step, total)
    return _cosine(peak, 0.0, step / total)


def constant(step: int, total: int, peak: float) -> float:
    """Learning rate ``peak`` at every step. Arguments and errors: see `one_cycle`."""
    _check_step(step, total)
    return peak


SCHEDULES: dict[str, Callable[[int, int, float], float]] = {
    "one-cycle": one_cycle,
    "cosine": cosine,
    "constant": constant,
}


def _check_step(step: int, total: int) -> None:
    if not 0 <= step < total:
        raise ValueError(f"step: expected 0 to {total - 1}, got {step}")


def _cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * progress)) / 2.0
