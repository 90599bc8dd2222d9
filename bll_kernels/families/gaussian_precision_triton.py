"""The element function of gaussian-precision; the maths is in gaussian_precision.py."""

from __future__ import annotations

import math

import triton
import triton.language as tl

from bll_kernels.families.special_triton import blend


def _series(t: float, grow: bool) -> float:
    """For small t: log1p(t) - t / (1 + t) with `grow`, else t - log1p(t)."""
    total, power = 0.0, t
    for n in range(2, 16):
        power *= -t
        total -= power * ((n - 1) if grow else 1) / n
    return total


def options(tau: float, tilt: float, loss: str) -> tuple[float, float, float]:
    """Numbers that the element function takes: precision, gain, and the loss at b = a."""
    t = tau * tilt
    k = t / (1 + t)
    if loss == "evidence":
        floor = math.log(2 * math.pi / k) if k > 0 else math.inf
    elif loss in ("kl", "kl_full"):
        floor = _series(t, True) if t < 0.05 else math.log1p(t) - k
    else:
        floor = _series(t, False) if t < 0.05 else t - math.log1p(t)
    return t, k, floor / 2


@triton.jit
def terms(a, b, precision, gain, floor, LOSS: tl.constexpr):
    """Value and gradients to a and b of one latent, float32."""
    d = b - a
    if LOSS == "evidence":
        value = floor + gain * d * d * 0.5
        grad_b = gain * d
        grad_a = -grad_b
    elif LOSS == "kl" or LOSS == "kl_full":
        value = floor + gain * gain * d * d * 0.5
        full = gain * gain * d
        if LOSS == "kl":
            grad_a = -gain * d
            grad_b = d * 0.0
        else:
            grad_a = -full
            grad_b = full
    else:
        value = floor + precision * gain * d * d * 0.5
        full = precision * gain * d
        if LOSS == "reverse_kl":
            grad_a = -precision * d
            grad_b = d * 0.0
        else:
            grad_a = -full
            grad_b = full
    return value, grad_a, grad_b


@triton.jit
def next_mean(a, b, precision, gain, floor, mix):
    """Mean of alpha and of rho, mixed."""
    return blend(a, a + gain * (b - a), mix)
