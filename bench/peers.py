"""Peers as calls on given tensors: the same inputs, the same outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from bll.bench.peers import (
    bernoulli_scores,
    distributions,
    formula,
    one_graph,
    pooled_linear,
)

__all__ = [
    "Call",
    "Values",
    "bernoulli_scores",
    "class_step",
    "differentiated",
    "distributions",
    "formula",
    "one_graph",
    "pair_peers",
    "pooled_linear",
]

Values = tuple[Tensor, ...]
Call = Callable[[], Values]


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


def class_step(
    scores: Callable[[Tensor, Tensor], Tensor], a: Tensor, table: Tensor, labels: Tensor
) -> Call:
    """Cross-entropy of the scores, with gradients to a and the table."""
    leaves = [a.detach().requires_grad_(), table.detach().requires_grad_()]

    def call() -> Values:
        loss = F.cross_entropy(scores(*leaves), labels)
        return (loss.detach(), *torch.autograd.grad(loss, leaves))

    return call
