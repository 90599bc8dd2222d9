"""The Gaussian element function of the Triton kernels; the maths is in gaussian.py."""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.families.special_triton import blend


def options(tau: float, tilt: float, loss: str) -> tuple[float, float, float]:
    """Numbers that the element function takes: the tilt."""
    return tilt, 0.0, 0.0


@triton.jit
def terms(a, b, tilt, unused1, unused2, LOSS: tl.constexpr):
    """Value and gradients to a and b of one latent, float32."""
    b = tilt * b
    if LOSS == "evidence":
        value = -b * (a + 0.5 * b)
        grad_a = -b
        grad_b = -(a + b)
    else:
        value = 0.5 * b * b
        if LOSS == "kl" or LOSS == "reverse_kl":
            grad_a = -b
            grad_b = b * 0.0
        else:
            grad_a = tl.zeros_like(b)  # whatever the message: variances are equal
            grad_b = b
    return value, grad_a, tilt * grad_b


@triton.jit
def next_mean(a, b, tilt, unused1, unused2, mix):
    """Mean of alpha and of rho, mixed."""
    return blend(a, a + tilt * b, mix)
