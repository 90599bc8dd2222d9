"""Gaussian latents with their own variance: a = (mean, log-variance) on the second-last dimension.

alpha = N(ma, e^sa), beta = N(mb, e^sb). With k = sigmoid(sa - sb), d = mb - ma, L = e^-sa and
w = d^2 L the posterior has mean ma + k d and variance (1 - k) e^sa:

    KL(rho || alpha)  = (k^2 w - k - log(1 - k)) / 2
    KL(alpha || rho)  = (k/(1-k) + k^2 w/(1-k) + log(1 - k)) / 2
    -log E_alpha beta = (log 2 pi + log(e^sa + e^sb) + k w) / 2

The gradients stand in docs/method.md. The message is a density over z.
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
        z = log_var_a - log_var_b
        k, rest = torch.sigmoid(z), torch.sigmoid(-z)  # k and 1 - k
        slope = (mean_b - mean_a) * torch.exp(-log_var_a)  # d L
        w = (mean_b - mean_a) * slope
        odds = torch.exp(z)  # k / (1 - k)
        if loss in ("kl", "kl_full"):
            gap = torch.where(k < 0.25, log1p_deficit(-k.clamp(max=0.25)), _softplus(z) - k)
            value = gap + k * k * w
        elif loss in ("reverse_kl", "reverse_kl_full"):
            small = log1p_deficit(odds.clamp(max=0.25))
            value = torch.where(odds < 0.25, small, odds - _softplus(z)) + k * odds * w
        else:
            value = math.log(2 * math.pi) + log_var_b + _softplus(z) + k * w

        if loss in ("kl", "evidence"):
            grad_a = (-k * slope, 0.5 * (k - k * k * w))
            grad_b = (k * slope, 0.5 * rest * (1 - k * w))
        elif loss == "kl_full":
            grad_a = (-k * k * slope, 0.5 * k * k * (1 + w * (1 - 2 * k)))
            grad_b = (k * k * slope, -0.5 * k * k * (1 + 2 * rest * w))
        elif loss == "reverse_kl":
            grad_a = (-odds * slope, 0.5 * odds)
            grad_b = grad_a
        else:
            grad_a = (-k * odds * slope, 0.5 * k * (odds + k * w))
            grad_b = (k * odds * slope, -0.5 * k * odds * (1 + w * (2 - k)))
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
