"""Gaussian latents N(a, 1) with a Gaussian message N(m, 1/tau); b is the message's mean m.

With k = tau / (1 + tau) and d = m - a the posterior is N(a + k d, 1 - k):

    KL(rho || alpha)  = (k^2 d^2 - k + log(1 + tau)) / 2      d/da stopped: -k d     full: -k^2 d
    KL(alpha || rho)  = (tau k d^2 + tau - log(1 + tau)) / 2  d/da stopped: -tau d   full: -tau k d
    -log E_alpha beta = (k d^2 + log(2 pi / k)) / 2           d/da: -k d

Gradients to m are the negatives of the full ones. The message is a density over z.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll_kernels.families.base import PairTerms


class GaussianPrecision:
    """Reference formulas; `group` has no meaning here."""

    planes = 1

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """See the module docstring."""
        a, b = torch.broadcast_tensors(a, b)
        k = tau / (1 + tau)
        if loss in ("kl", "kl_full"):
            constant, square = math.log1p(tau) - k, k * k
            slope = k if loss == "kl" else square
        elif loss in ("reverse_kl", "reverse_kl_full"):
            constant, square = tau - math.log1p(tau), tau * k
            slope = tau if loss == "reverse_kl" else square
        else:
            constant, square, slope = math.log(2 * math.pi / k), k, k
        d = b - a
        value = 0.5 * (square * d * d + constant)
        return PairTerms(value.sum(-1), -slope * d, slope * d)

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """The posterior's mean lies between the two, at k."""
        return a, a + tau / (1 + tau) * (b - a)

    def message_log_norm(self, b: Tensor, *, group: int) -> None:
        """The message is normalised already."""

    def tilt_message(self, b: Tensor, tau: float, tilt: float) -> tuple[Tensor, float, float]:
        """beta ** tilt has `tilt` times the precision, and the same mean."""
        return b, tau * tilt, 1.0
