"""What a user would run instead: the same inputs, the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, kl_divergence

Values = tuple[Tensor, ...]
Call = Callable[[], Values]


def formula(a: Tensor, b: Tensor, full: bool) -> Tensor:
    """Bernoulli KL(rho || alpha) in autograd operations; rho held constant unless full."""
    rows = a.numel() // a.shape[-1]
    if full:
        r = a + b
        return (b * torch.sigmoid(r) - F.softplus(r) + F.softplus(a)).sum() / rows
    r = (a + b).detach()
    return ((r - a) * torch.sigmoid(r) - F.softplus(r) + F.softplus(a)).sum() / rows


def distributions(a: Tensor, b: Tensor, full: bool) -> Tensor:
    """The same through torch.distributions."""
    r = a + b if full else (a + b).detach()
    divergence = kl_divergence(
        Bernoulli(logits=r, validate_args=False), Bernoulli(logits=a, validate_args=False)
    )
    return divergence.sum() / (a.numel() // a.shape[-1])


def one_graph(a: Tensor, b: Tensor, full: bool) -> Values:
    """Value and gradients derived by hand, for a compiler to fuse; float32 inside."""
    rows = a.numel() // a.shape[-1]
    x, y = a.float(), b.float()
    r = x + y
    p, q = torch.sigmoid(r), torch.sigmoid(x)
    value = (y * p - F.softplus(r) + F.softplus(x)).sum() / rows
    if not full:
        return value, ((q - p) / rows).to(a.dtype)
    db = p * (1 - p) * y
    return value, ((db - p + q) / rows).to(a.dtype), (db / rows).to(b.dtype)


def differentiated(
    value: Callable[[Tensor, Tensor, bool], Tensor], a: Tensor, b: Tensor, full: bool
) -> Call:
    """A call that returns the value and autograd's gradients."""
    leaves = [a.detach().requires_grad_(), b.detach().requires_grad_(full)]
    wanted = leaves if full else leaves[:1]

    def call() -> Values:
        result = value(*leaves, full)
        return (result.detach(), *torch.autograd.grad(result, wanted))

    return call


def pair_peers(a: Tensor, b: Tensor, full: bool, compiled: bool) -> dict[str, Call]:
    """Every peer of ``posterior_kl`` with its gradients."""
    peers = {
        "eager formula": differentiated(formula, a, b, full),
        "torch.distributions": differentiated(distributions, a, b, full),
    }
    if compiled:
        torch._dynamo.reset()
        fused = torch.compile(one_graph, dynamic=False)
        peers["compiled formula"] = differentiated(
            torch.compile(formula, dynamic=False), a, b, full
        )

        def by_hand() -> Values:
            with torch.no_grad():
                result: Values = fused(a, b, full)
            return result

        peers["compiled one graph"] = by_hand
    return peers


def bernoulli_scores(a: Tensor, table: Tensor) -> Tensor:
    """Log-evidence of every class, [B, C], through the [B, C, D] tensor autograd needs."""
    return (F.softplus(a.unsqueeze(1) + table) - F.softplus(a).unsqueeze(1)).sum(-1)


def class_step(
    scores: Callable[[Tensor, Tensor], Tensor], a: Tensor, table: Tensor, labels: Tensor
) -> Call:
    """Cross-entropy of the scores, with gradients to a and the table."""
    leaves = [a.detach().requires_grad_(), table.detach().requires_grad_()]

    def call() -> Values:
        loss = F.cross_entropy(scores(*leaves), labels)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    return call


def pooled_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A linear classifier on a 4x4 grid of means."""
    return F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), weight)
