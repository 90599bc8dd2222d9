"""Gaussian latents with their own variance: a = (mean, log-variance) on the second-last dimension.

alpha = N(ma, e^sa), beta = N(mb, e^sb). With k = sigmoid(sa - sb), d = mb - ma and
o = 1 / (e^sa + e^sb), so that k = o e^sa, the posterior has mean ma + k d and variance
(1 - k) e^sa. With w = o d^2:

    KL(rho || alpha)  = (k w - k - log(1 - k)) / 2
    KL(alpha || rho)  = (k/(1-k) + k e^-sb d^2 + log(1 - k)) / 2
    -log E_alpha beta = (log 2 pi - log o + w) / 2

The gradients stand in docs/method.md. The message is a density over z. A variance of zero or
infinity takes its limit where there is one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll_kernels.families.base import PairTerms
from bll_kernels.families.numerics import log1p_deficit


def _softplus(z: Tensor) -> Tensor:
    """log(1 + e^z); torch's softplus drops e^-z above 20, which float64 would still hold."""
    return torch.logaddexp(z, torch.zeros_like(z))


class GaussianDiagonal:
    """Reference formulas; `group` and `tau` have no meaning here."""

    planes = 2

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """See the module docstring."""
        a, b = torch.broadcast_tensors(a, b)
        (mean_a, log_var_a), (mean_b, log_var_b) = a.unbind(-2), b.unbind(-2)
        z, d = log_var_a - log_var_b, mean_b - mean_a
        k, rest = torch.sigmoid(z), torch.sigmoid(-z)  # k and 1 - k
        largest = torch.maximum(log_var_a, log_var_b)
        overlap = torch.exp(-largest) * torch.sigmoid(z.abs())  # 1 / (e^sa + e^sb)
        w = overlap * d * d
        odds = torch.exp(z)  # k / (1 - k)
        slope = torch.exp(-log_var_b) * d
        spread = k * slope * d
        if loss in ("kl", "kl_full"):
            gap = torch.where(k < 0.25, log1p_deficit(-k.clamp(max=0.25)), _softplus(z) - k)
            value = gap + k * w
        elif loss in ("reverse_kl", "reverse_kl_full"):
            small = log1p_deficit(odds.clamp(max=0.25))
            value = torch.where(odds < 0.25, small, odds - _softplus(z)) + spread
        else:
            value = math.log(2 * math.pi) + largest + _softplus(-z.abs()) + w

        if loss in ("kl", "evidence"):
            grad_a = (-overlap * d, 0.5 * k * (1 - w))
            grad_b = (overlap * d, 0.5 * rest * (1 - w))
        elif loss == "kl_full":
            grad_a = (-k * overlap * d, 0.5 * k * (k + w * (1 - 2 * k)))
            grad_b = (k * overlap * d, -0.5 * k * (k + 2 * rest * w))
        elif loss == "reverse_kl":
            grad_a = (-slope, 0.5 * odds)
            grad_b = grad_a
        else:
            grad_a = (-k * slope, 0.5 * k * (odds + w))
            grad_b = (k * slope, -0.5 * (k * odds + spread * (1 + rest)))
        value = 0.5 * value.sum(-1)
        return PairTerms(value, torch.stack(grad_a, dim=-2), torch.stack(grad_b, dim=-2))

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """Means without their log-variances, [..., D]."""
        (mean_a, log_var_a), (mean_b, log_var_b) = a.unbind(-2), b.unbind(-2)
        return mean_a, mean_a + torch.sigmoid(log_var_a - log_var_b) * (mean_b - mean_a)

    def message_log_norm(self, b: Tensor, *, group: int) -> None:
        """The message is normalised already."""

    def tilt_message(self, b: Tensor, tau: float, tilt: float) -> tuple[Tensor, float, float]:
        """beta ** tilt has `tilt` times the precision, and the same mean."""
        mean, log_var = b.unbind(-2)
        return torch.stack((mean, log_var - math.log(tilt)), dim=-2), tau, 1.0
