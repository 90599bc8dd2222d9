r"""Categorical latents: one draw per group of `group` logits. A(a) = logsumexp(a), mu = softmax(a).

With r = a + b, p = softmax(a), q = softmax(r), everything per group:

    KL(rho || alpha)  = E_q b - [A(r) - A(a)]     d/da stopped: p - q   full: q (b - E_q b) + p - q
    KL(alpha || rho)  = A(r) - A(a) - E_p b       d/da stopped: -p (b - E_p b)
    -log E_alpha beta = -[A(r) - A(a)]            d/da: p - q           d/db: -q

Groups whose message varies by less than one use forms without cancellation; see "Numerics" in
docs/method.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.families.base import LogNorm, NaturalMessage, PairTerms
from bll_kernels.families.numerics import excess


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _weighted(p: Tensor, x: Tensor) -> Tensor:
    """p x with 0 x = 0, so that a masked class (a = -inf) contributes nothing."""
    return torch.where(p > 0, p * x, p * 0)


def _kl(p: Tensor, c: Tensor, direct: Tensor, direct_grad: Tensor, small: Tensor) -> PairTerms:
    """KL(EF(h) || EF(h - c)) and its derivative by h; p = softmax(h), E_p c = 0."""
    near = torch.where(small, c, 0)
    u = _sum(p * excess(near))
    value = torch.where(small, torch.log1p(u), direct.clamp_min(0))
    series = p * (excess(near) - torch.exp(-near) * u / (1 + u))
    return PairTerms(value, torch.where(small, series, direct_grad), _weighted(p, c))


class Categorical(NaturalMessage):
    """Reference formulas; `tau` has no meaning here."""

    planes = 1

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """See the module docstring."""
        a, b = torch.broadcast_tensors(a, b)
        shape = a.shape
        if group == 0 or a.numel() == 0:
            return PairTerms(a.new_zeros(shape[:-1]), torch.zeros_like(a), torch.zeros_like(b))
        terms = self._pair(a.unflatten(-1, (-1, group)), b.unflatten(-1, (-1, group)), loss)
        return PairTerms(
            terms.value.sum((-2, -1)), terms.grad_a.reshape(shape), terms.grad_b.reshape(shape)
        )

    def _pair(self, a: Tensor, b: Tensor, loss: str) -> PairTerms:
        top = b.amax(-1, keepdim=True)
        b = b - top
        p, q = torch.softmax(a, -1), torch.softmax(a + b, -1)
        small = b.amin(-1, keepdim=True) > -1
        x = torch.where(small, torch.expm1(b), 0)
        m = _sum(p * x)
        log_ratio = torch.logsumexp(a + b, -1, True) - torch.logsumexp(a, -1, True)
        log_evidence = torch.where(small, torch.log1p(m), log_ratio)  # without `top`
        stopped = torch.where(small, p * (m - x) / (1 + m), p - q)
        if loss == "evidence":
            return PairTerms(-(log_evidence + top), stopped, -q)
        if loss in ("kl", "kl_full"):
            mean = _sum(_weighted(q, b))
            c = b - mean
            terms = _kl(q, c, mean - log_ratio, _weighted(q, c) + p - q, small)
            return terms if loss == "kl_full" else terms._replace(grad_a=stopped)
        mean = _sum(_weighted(p, b))
        c = mean - b
        terms = _kl(p, c, log_ratio - mean, q - p + _weighted(p, c), small)
        if loss == "reverse_kl_full":
            return terms._replace(grad_b=-stopped)
        return terms._replace(grad_a=_weighted(p, c))

    def message_log_norm(self, b: Tensor, *, group: int) -> LogNorm:
        """logsumexp and softmax per group."""
        groups = b.unflatten(-1, (-1, group))
        value = torch.logsumexp(groups, -1).sum(-1)
        return LogNorm(value, torch.softmax(groups, -1).reshape(b.shape))
