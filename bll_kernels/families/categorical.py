r"""Categorical latents: one draw per group of `group` logits. A(a) = logsumexp(a), mu = softmax(a).

With r = a + b, p = softmax(a), q = softmax(r), everything per group:

    KL(rho || alpha)  = E_q b - [A(r) - A(a)]     d/da stopped: p - q   full: q (b - E_q b) + p - q
    KL(alpha || rho)  = A(r) - A(a) - E_p b       d/da stopped: -p (b - E_p b)
    -log E_alpha beta = -[A(r) - A(a)]            d/da: p - q           d/db: -q

The forms below avoid differences of nearly equal numbers; see "Numerics" in docs/method.md.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.families.base import LogNorm, NaturalMessage, PairTerms
from bll_kernels.families.numerics import excess


def _sum(x: Tensor) -> Tensor:
    return x.sum(-1, keepdim=True)


def _weighted(p: Tensor, x: Tensor) -> Tensor:
    """p x with 0 inf = 0, so that a masked class (a = -inf) contributes nothing; NaN stays."""
    return torch.where((p > 0) | x.isnan(), p * x, p * 0)


def _origin(x: Tensor) -> Tensor:
    """Where messages may count from: not from an infinite one."""
    return torch.where(x.isinf(), 0, x)


def _tilt_form(p: Tensor, c: Tensor, loss: str) -> PairTerms:
    """From alpha's probabilities and the centred message c, E_alpha[c] = 0: no cancellation."""
    x, rest = torch.expm1(c), excess(-c)  # e^c - 1, e^c - 1 - c
    surplus = _sum(p * rest)  # E_alpha[e^c] - 1
    log_mean = torch.log1p(surplus)
    q = p / (1 + surplus)
    if loss == "evidence":
        return PairTerms(-log_mean, q * (surplus - x), -q * (1 + x))
    if loss == "reverse_kl":
        return PairTerms(log_mean, -p * c, q * (x - surplus))
    if loss == "reverse_kl_full":
        return PairTerms(log_mean, q * (rest - surplus - c * surplus), q * (x - surplus))
    mean = _sum(p * x * c) / (1 + surplus)  # E_rho[c]
    stopped = q * (surplus - x)
    full = q * (x * c - rest + surplus - (1 + x) * mean)
    value = (mean - log_mean).clamp_min(0)
    return PairTerms(value, stopped if loss == "kl" else full, q * (1 + x) * (c - mean))


def _direct_form(a: Tensor, b: Tensor, p: Tensor, centre: Tensor, loss: str) -> PairTerms:
    """From both probabilities, for messages that amplify an element beyond e^32."""
    q = torch.softmax(a + b, -1)
    log_mean = torch.logsumexp(a + b, -1, True) - torch.logsumexp(a, -1, True) - centre
    c = b - centre
    if loss == "evidence":
        return PairTerms(-log_mean, p - q, -q)
    if loss in ("reverse_kl", "reverse_kl_full"):
        pulled = _weighted(p, c)
        grad_a = -pulled if loss == "reverse_kl" else q - p - pulled
        return PairTerms(log_mean.clamp_min(0), grad_a, q - p)
    mean = _sum(_weighted(q, c))
    pulled = _weighted(q, c - mean)
    grad_a = p - q if loss == "kl" else pulled + p - q
    return PairTerms((mean - log_mean).clamp_min(0), grad_a, pulled)


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
        p = torch.softmax(a, -1)
        # Messages count from that of alpha's likeliest element, so that their mean keeps its
        # digits when alpha is all but certain.
        anchor = _origin(b.gather(-1, a.argmax(-1, keepdim=True)))
        message = b - anchor
        centre = _sum(_weighted(p, message))
        if not loss.startswith("reverse"):  # whose value an element with b = -inf makes infinite
            centre = _origin(centre)
        c = message - centre
        tame = (c.amax(-1, keepdim=True) <= 32) & (c.amin(-1, keepdim=True) > -torch.inf)
        tilt = _tilt_form(p, torch.where(tame, c, 0), loss)
        direct = _direct_form(a, message, p, centre, loss)
        value, grad_a, grad_b = (torch.where(tame, x, y) for x, y in zip(tilt, direct, strict=True))
        if loss == "evidence":
            value = value - (anchor + centre)
        return PairTerms(value, grad_a, grad_b)

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """Probabilities of every element of a group."""
        if a.numel() == 0:
            return a, a
        logits, messages = a.unflatten(-1, (-1, group)), b.unflatten(-1, (-1, group))
        # Counted from one element, so that large messages that differ little keep their digits.
        likeliest = logits.argmax(-1, keepdim=True)
        posterior = logits + (messages - _origin(messages.gather(-1, likeliest)))
        return torch.softmax(logits, -1).flatten(-2), torch.softmax(posterior, -1).flatten(-2)

    def message_log_norm(self, b: Tensor, *, group: int) -> LogNorm:
        """logsumexp and softmax per group."""
        if b.shape[-1] == 0:
            return LogNorm(b.new_zeros(b.shape[:-1]), torch.zeros_like(b))
        groups = b.unflatten(-1, (-1, group))
        value = torch.logsumexp(groups, -1).sum(-1)
        return LogNorm(value, torch.softmax(groups, -1).reshape(b.shape))
