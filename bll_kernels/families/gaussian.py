"""Gaussian latents of unit variance with mean a: A(a) = a^2 / 2, mu = a; the message tilts it.

    KL(rho || alpha) = KL(alpha || rho) = b^2 / 2     d/da stopped: -b     full: 0     d/db: b
    -log E_alpha beta = -b (a + b/2)                  d/da: -b             d/db: -(a + b)

The full KL has no gradient to `a`: only the stopped form and the evidence teach the block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.families.base import LogNorm, NaturalMessage, PairTerms


class Gaussian(NaturalMessage):
    """Reference formulas; `group` and `tau` have no meaning here."""

    planes = 1

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """See the module docstring."""
        a, b = torch.broadcast_tensors(a, b)
        if loss == "evidence":
            return PairTerms(-(b * (a + 0.5 * b)).sum(-1), -b, -(a + b))
        value = (0.5 * b * b).sum(-1)
        full = loss in ("kl_full", "reverse_kl_full")
        return PairTerms(value, torch.zeros_like(b) if full else -b, b)

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """A message moves the mean by itself."""
        return a, a + b

    def message_log_norm(self, b: Tensor, *, group: int) -> LogNorm:
        """b^2 / 2 and b."""
        return LogNorm((0.5 * b * b).sum(-1), b)
