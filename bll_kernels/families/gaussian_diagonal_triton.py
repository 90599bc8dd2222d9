"""The element function of gaussian-diagonal; the maths is in gaussian_diagonal.py.

The same forms as csrc/families/gaussian_diagonal.h.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl

from bll_kernels.families.special_triton import atanh_rest, blend, exp_any, exp_nonpositive


def options(tau: float, tilt: float, loss: str) -> tuple[float, float, float]:
    """Numbers that the element function takes: the logarithm of the tilt."""
    return math.log(tilt), 0.0, 0.0


@triton.jit
def terms(mean_a, sa, mean_b, sb, log_tilt, unused1, unused2, LOSS: tl.constexpr):
    """Value and gradients to (mean, log-variance) of a, then of b, of one latent, float32."""
    sb = sb - log_tilt
    d = mean_b - mean_a
    z = sa - sb
    wide = z > 0.0  # alpha is wider than the message
    e = exp_nonpositive(-tl.abs(z))
    inverse = 1.0 / ((1.0 + e) * (2.0 + e))
    half = inverse * (2.0 + e)  # 1 / (1 + e)
    k = tl.where(wide, half, e * half)
    rest = tl.where(wide, e * half, half)  # 1 - k
    # log(1 + e) = 2 atanh(s): what is left of it beside its first orders never cancels.
    s = e * (inverse * (1.0 + e))
    tail = 2.0 * atanh_rest(s)
    overlap = exp_any(-tl.where(wide, sa, sb)) * half  # 1 / (e^sa + e^sb)
    w = overlap * d * d
    if LOSS == "evidence":
        log_sum = tl.where(wide, sa, sb) + 2.0 * s + tail
        value = (1.8378770664093453 + log_sum + w) * 0.5
        mean = overlap * d
        return value, -mean, k * (1.0 - w) * 0.5, mean, rest * (1.0 - w) * 0.5
    elif LOSS == "kl" or LOSS == "kl_full":
        value = (tl.where(wide, z + 2.0 * s - k, s * k) + tail + k * w) * 0.5
        if LOSS == "kl":
            zero = d * 0.0
            return value, -overlap * d, k * (1.0 - w) * 0.5, zero, zero
        else:
            mean = k * overlap * d
            grad_sa = k * (k + w * (1.0 - 2.0 * k)) * 0.5
            return value, -mean, grad_sa, mean, -k * (k + 2.0 * rest * w) * 0.5
    else:
        ratio = exp_any(z)  # k / (1 - k)
        precision = exp_any(-sb)
        spread = k * precision * d * d
        value = (tl.where(wide, ratio - z - 2.0 * s, s * ratio) - tail + spread) * 0.5
        if LOSS == "reverse_kl":
            zero = d * 0.0
            return value, -precision * d, ratio * 0.5, zero, zero
        else:
            mean = k * precision * d
            grad_sb = -(k * ratio + spread * (1.0 + rest)) * 0.5
            return value, -mean, k * (ratio + w) * 0.5, mean, grad_sb


@triton.jit
def next_mean(mean_a, sa, mean_b, sb, log_tilt, unused1, unused2, mix):
    """Mean of alpha and of rho, mixed."""
    z = sa - (sb - log_tilt)
    e = exp_nonpositive(-tl.abs(z))
    k = tl.where(z > 0.0, 1.0, e) * (1.0 / (1.0 + e))
    return blend(mean_a, mean_a + k * (mean_b - mean_a), mix)
