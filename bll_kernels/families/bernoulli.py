r"""Bernoulli latents z in {0, 1} with logit a: A(a) = softplus(a), mu = sigmoid(a).

With r = a + b, P = sigmoid(r) and v = P (1 - P):

    KL(rho || alpha)  = b P - [A(r) - A(a)]       d/da stopped: mu(a) - mu(r)   full: v b + mu(a) - mu(r)
    KL(alpha || rho)  = A(r) - A(a) - b mu(a)     the same function seen from a, with message -b
    -log E_alpha beta = -[A(r) - A(a)]            d/da: mu(a) - mu(r)           d/db: -mu(r)

For small b these are differences of nearly equal numbers. The forms below avoid that: see
"Numerics" in docs/method.md.
"""  # noqa: E501

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.families.base import LogNorm, NaturalMessage, PairTerms
from bll_kernels.families.numerics import excess


def _mean_shift(a: Tensor, b: Tensor, r: Tensor) -> Tensor:
    """mu(r) - mu(a), by a product of positive factors, so with full relative accuracy."""
    up = -torch.expm1(-b) * torch.sigmoid(r) * torch.sigmoid(-a)
    down = torch.expm1(b) * torch.sigmoid(-r) * torch.sigmoid(a)
    return torch.where(b >= 0, up, down)


def _log_ratio(a: Tensor, b: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log1p(z), flipped b and flipped r of the frame in which a <= 0; z in [-1/2, 1]."""
    e1, e2 = torch.exp(-a.abs()), torch.exp(-r.abs())
    flip = torch.where(a > 0, -torch.ones_like(a), torch.ones_like(a))
    return torch.log1p((e2 - e1) / (1 + e1)), b * flip, r * flip


def _kl(h: Tensor, c: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """KL(EF(h) || EF(h - c)) with other = h - c, and its derivative by h at constant c."""
    p, q = torch.sigmoid(h), torch.sigmoid(-h)
    c1, c0 = c * q, -c * p
    u = p * excess(c1) + q * excess(c0)
    log_z, flipped_c, flipped_h = _log_ratio(other, c, h)
    pulled = flipped_c * torch.sigmoid(flipped_h)
    across = other.abs() - flipped_c * torch.sigmoid(-flipped_h)
    # An infinite message is not to be taken from itself.
    across = torch.where(other.isinf(), pulled - flipped_h, across)
    direct = torch.where(flipped_h <= 0, pulled, across)
    small = c.abs() < 1
    value = torch.where(small, torch.log1p(u), (direct - log_z).clamp_min(0))
    series_grad = p * (excess(c1) - torch.exp(-c1) * u / (1 + u))
    grad = torch.where(small, series_grad, p * q * c - _mean_shift(other, c, h))
    return value, grad


class Bernoulli(NaturalMessage):
    """Reference formulas; `group` and `tau` have no meaning here."""

    planes = 1

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """See the module docstring."""
        r = a + b
        shift = _mean_shift(a, b, r)
        if loss in ("kl", "kl_full"):
            value, full = _kl(r, b, a)
            grad_a = -shift if loss == "kl" else full
            grad_b = torch.sigmoid(r) * torch.sigmoid(-r) * b
        elif loss in ("reverse_kl", "reverse_kl_full"):
            value, full = _kl(a, -b, r)
            variance = torch.sigmoid(a) * torch.sigmoid(-a)
            grad_a = -variance * b if loss == "reverse_kl" else full
            grad_b = shift
        else:
            kl, _ = _kl(r, b, a)
            log_z, _, flipped_r = _log_ratio(a, b, r)
            # In the flipped frame A(r) - A(a) is log1p(z), plus r where r crossed zero; flipping
            # back adds b.
            crossed = flipped_r > 0
            beside = torch.where(a > 0, torch.where(crossed, -a, b), torch.where(crossed, r, 0))
            log_evidence = log_z + beside
            value = torch.where(b.abs() < 1, kl - b * torch.sigmoid(r), -log_evidence)
            grad_a, grad_b = -shift, -torch.sigmoid(r)
        return PairTerms(value.sum(-1), grad_a, grad_b)

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """Probabilities of z = 1."""
        return torch.sigmoid(a), torch.sigmoid(a + b)

    def message_log_norm(self, b: Tensor, *, group: int) -> LogNorm:
        """softplus(b) and sigmoid(b)."""
        return LogNorm(torch.logaddexp(b, torch.zeros_like(b)).sum(-1), torch.sigmoid(b))
