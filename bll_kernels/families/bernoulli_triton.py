"""The Bernoulli element function of the Triton kernels; the maths is in bernoulli.py.

The same forms as csrc/families/bernoulli.h: z -> 1 - z maps (a, b) to (-a, -b), so everything is
computed in the frame where a <= 0, where small probabilities stay exact, and mapped back.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.families.special_triton import (
    atanh_rest,
    blend,
    exp_nonpositive,
    expm1_small,
)


def options(tau: float, tilt: float, loss: str) -> tuple[float, float, float]:
    """Numbers that the element function takes: the tilt."""
    return tilt, 0.0, 0.0


@triton.jit
def _asymmetry(b, w, shift):
    """(b (mu(r) + mu(a)) / 2 - (A(r) - A(a))) / (b^2 shift w) for a small message."""
    q = w * w + shift * shift
    return b * b * (q * (-1.0 / 240.0) + 1.0 / 360.0) + 1.0 / 12.0


@triton.jit
def _lean(h, e, inverse):
    """1 - 2 mu(h), given e^-|h| and 1 / (1 + e^-|h|)."""
    m = -tl.abs(h)
    size = tl.where(m > -0.5, -expm1_small(m), 1.0 - e) * inverse
    return tl.where(h > 0.0, -size, size)


@triton.jit
def _cubic_rest(x):
    """x - (1 - e^-x) (1 + x / 2) = x^3 / 12 - x^4 / 24 + ... for |x| < 1."""
    y = x * 9.622881407267414e-6 - 7.632630877196789e-5
    y = y * x + 4.962611710652709e-4
    y = y * x - 2.7768362779170275e-3
    y = y * x + 1.249989029020071e-2
    y = y * x - 4.166677966713905e-2
    y = y * x + 8.33333432674408e-2
    return x * x * x * y


@triton.jit
def terms(a, b, tilt, unused1, unused2, LOSS: tl.constexpr):
    """Value and gradients to a and b of one latent, float32."""
    flipped = a > 0.0
    message = tilt * b
    a = -tl.abs(a)
    b = tl.where(flipped, -message, message)
    r = a + b
    above = r > 0.0
    small = tl.abs(b) < 0.4
    ea = exp_nonpositive(a)
    er = exp_nonpositive(-tl.abs(r))
    rise = tl.where(above, 1.0, er)  # e^min(r, 0)
    fall = tl.where(above, er, 1.0)  # e^-max(r, 0)
    pa = 1.0 + ea
    pr = 1.0 + er
    both = pa * pr
    inverse = 1.0 / (both * (pa + pr))
    product = inverse * (pa + pr)
    ia = product * pr
    ir = product * pa
    slope = (er - ea) * (inverse * both)
    log_ratio = 2.0 * (slope + atanh_rest(slope))
    near_shift = -expm1_small(-b) * rise
    shift = tl.where(small, near_shift, rise - ea * fall) * product  # mu(r) - mu(a)
    balance = (fall - ea * rise) * product  # 1 - mu(r) - mu(a)
    skew = b * balance * _asymmetry(b, balance, shift)
    posterior_variance = er * ir * ir
    prior_variance = ea * ia * ia

    if LOSS == "evidence":
        mean = (rise * ir + ea * ia) * 0.5 - shift * balance * b * _asymmetry(b, balance, shift)
        back = tl.where(flipped, b, 0.0)
        near = b * mean - back
        far = tl.where(above, tl.where(flipped, a, r), -back) + log_ratio
        value = -tl.where(small, near, far)
        grad_a = -shift
        grad_b = -tl.where(flipped, fall, rise) * ir
    elif LOSS == "kl" or LOSS == "kl_full":
        far = tl.where(above, -a - b * (er * ir), b * (er * ir)) - log_ratio
        value = tl.where(small, b * shift * (0.5 + skew), far)
        lost = message * 0.0  # NaN for an infinite message, as in the definition
        value = tl.where(value < 0.0, 0.0, value) + lost
        if LOSS == "kl":
            grad_a = -shift
            grad_b = shift * 0.0
        else:
            near = rise * product * _cubic_rest(b) + b * shift * (_lean(r, er, ir) * 0.5)
            grad_a = tl.where(tl.abs(b) < 1.0, near, posterior_variance * b - shift) + lost
            grad_b = posterior_variance * message + lost
    else:
        # No difference of an infinite message and itself.
        drift = tl.where(above, a + b * ia, -b * (ea * ia))
        value = tl.where(small, b * shift * (0.5 - skew), drift + log_ratio)
        value = tl.where(value < 0.0, 0.0, value)
        if LOSS == "reverse_kl":
            grad_a = -prior_variance * b
            grad_b = shift * 0.0
        else:
            near = ea * fall * product * _cubic_rest(-b) + b * shift * (_lean(a, ea, ia) * 0.5)
            grad_a = tl.where(tl.abs(b) < 1.0, near, shift - prior_variance * b)
            grad_b = tl.where(flipped, -shift, shift)
    return value, tl.where(flipped, -grad_a, grad_a), tilt * grad_b


@triton.jit
def _mean(x):
    e = exp_nonpositive(-tl.abs(x))
    return tl.where(x > 0.0, 1.0, e) * (1.0 / (1.0 + e))


@triton.jit
def next_mean(a, b, tilt, unused1, unused2, mix):
    """Mean of alpha and of rho, mixed."""
    return blend(_mean(a), _mean(a + tilt * b), mix)
