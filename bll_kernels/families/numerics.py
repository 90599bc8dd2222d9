"""Special functions that keep their digits near zero."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_TERMS = 16


def excess(c: Tensor) -> Tensor:
    """exp(-c) - 1 + c >= 0 with full relative accuracy; c^2 (1/2 - c/6 + ...) near zero."""
    x = c.clamp(-1, 1)
    series = torch.zeros_like(x)
    for n in reversed(range(_TERMS)):
        series = series * -x + 1 / math.factorial(n + 2)
    return torch.where(c.abs() < 1, c * c * series, c + torch.expm1(-c))


def log1p_deficit(t: Tensor) -> Tensor:
    """t - log1p(t) >= 0 for t > -1, with full relative accuracy; t^2 (1/2 - t/3 + ...) near 0."""
    x = t.clamp(-0.25, 0.25)
    series = torch.zeros_like(x)
    for n in reversed(range(2, 28)):
        series = series * -x + 1 / n
    return torch.where(t.abs() < 0.25, t * t * series, t - torch.log1p(t))
