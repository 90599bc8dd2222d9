"""Categorical groups in the Triton kernels; the maths is in categorical.py.

The same forms as csrc/families/categorical.h: messages count from that of alpha's likeliest
element (the anchor), c is a message minus its mean under alpha. A message that amplifies no
element beyond e^32 is treated by tilting alpha, free of cancellation; others from both
probabilities ("direct").

What the elements of a group share is seven numbers, the statistics (max_a, inverse_z, anchor,
centre, first, second, inverse_zr): for a tilted group first and second are E_alpha[x - c] and
E_alpha[x c - (x - c)] with x = e^c - 1, and inverse_zr is 0; for a direct one they are the
largest posterior logit and E_rho[c].
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.families.special_triton import (
    blend,
    exp_any,
    expm1_rest_ratio,
    expm1_small,
    log1p_nonnegative,
    log_positive,
)

AMPLIFIED = tl.constexpr(32.0)


def options(tau: float, tilt: float, loss: str) -> tuple[float, float, float]:
    """Numbers that the element functions take: the tilt."""
    return tilt, 0.0, 0.0


@triton.jit
def weighted(p, x):
    """p x with 0 inf = 0: a masked element (a = -inf) contributes nothing. NaN stays NaN."""
    return tl.where((p > 0.0) | (x != x), p * x, p * 0.0)


@triton.jit
def origin(x):
    """Where messages may count from: not from an infinite one."""
    return tl.where(tl.abs(x) == float("inf"), 0.0, x)


@triton.jit
def growth(c):
    """e^c, x = e^c - 1, x - c, and x c - (x - c), none a difference of nearly equal numbers."""
    ratio = expm1_rest_ratio(c)
    square = c * c
    factor = exp_any(c)
    far = factor - 1.0
    small = tl.abs(c) < 1.0
    rest = tl.where(small, square * ratio, far - c)
    x = tl.where(small, c + square * ratio, far)
    gap = tl.where(small, square * (1.0 - (1.0 - c) * ratio), far * c - (far - c))
    return factor, x, rest, gap


@triton.jit
def group_value(
    tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS: tl.constexpr
):  # fmt: skip
    """The loss of a group from its statistics."""
    direct = inverse_zr != 0.0
    infinite = first == float("inf")
    ratio = inverse_z / tl.where(direct, inverse_zr, inverse_z)
    log_ratio = tl.where(infinite, 0.0 * inverse_z, log_positive(ratio))
    excess = tl.where(direct, 0.0, first)
    log_mean = tl.where(
        direct, first - max_a - centre + log_ratio, log1p_nonnegative(excess)
    )  # log E_alpha[e^c]
    if LOSS == "evidence":
        value = -(tilt * anchor + centre + log_mean)
    else:
        if LOSS == "kl" or LOSS == "kl_full":
            mean = tl.where(direct, second, (excess + second) / (1.0 + excess))
            value = mean - log_mean
        else:
            value = log_mean
        value = tl.where(value < 0.0, 0.0, value)
    return value


@triton.jit
def group_terms(
    a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS: tl.constexpr
):  # fmt: skip
    """Gradients to a and b of one element from its group's statistics."""
    direct = inverse_zr != 0.0
    p = exp_any(a - max_a) * inverse_z
    message = tilt * (b - anchor)
    c = message - centre
    excess = tl.where(direct, 0.0, first)
    factor, x, rest, gap = growth(c)
    q = p / (1.0 + excess)
    rho = tl.where(direct, exp_any(a + message - first) * inverse_zr, q * factor)
    if LOSS == "kl" or LOSS == "evidence":
        grad_a = tl.where(direct, p - rho, q * (excess - x))
        grad_b = -rho
    elif LOSS == "kl_full":
        mean = tl.where(direct, second, (excess + second) / (1.0 + excess))
        offset = (excess * excess - second) / (1.0 + excess)
        response = weighted(rho, c - mean)
        grad_a = tl.where(direct, response + p - rho, q * (gap + offset - x * mean))
        grad_b = response
    elif LOSS == "reverse_kl":
        grad_a = -weighted(p, c)
        grad_b = p * 0.0
    else:
        grad_a = tl.where(direct, rho - p - weighted(p, c), q * (rest - excess - c * excess))
        grad_b = tl.where(direct, rho - p, q * (x - excess))
    return grad_a, tilt * grad_b


@triton.jit
def group_next(
    a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix
):  # fmt: skip
    """Probabilities under alpha and rho of one element, mixed."""
    direct = inverse_zr != 0.0
    message = tilt * (b - anchor)
    tilted = exp_any(a - max_a + (message - centre)) * (inverse_z / (1.0 + first))
    rho = tl.where(direct, exp_any(a + message - first) * inverse_zr, tilted)
    return blend(exp_any(a - max_a) * inverse_z, rho, mix)


@triton.jit
def class_slopes(a, b, tilt, log_norm, score):
    """d s / d a and d s / d b of s = log E_alpha[beta], given A(a) and s of the group."""
    p = exp_any(a - log_norm)
    x = tilt * b - score
    q = exp_any(a - log_norm + x)
    near = tl.abs(x) < 0.5
    return tl.where(near, p * expm1_small(x), q - p), tilt * q
