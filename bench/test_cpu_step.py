"""A whole training step of an MLP: local losses, a loss that costs nothing, and backprop."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import Goal, Record
from torch import Tensor, nn

import bll_kernels as bk

INPUTS, CLASSES, DEPTH = 784, 10, 4
LocalGradient = Callable[[Tensor, int], Tensor]


def network(width: int) -> nn.ModuleList:
    """Four blocks of one linear layer and a ReLU; equal seeds give equal weights."""
    torch.manual_seed(0)
    sizes = [INPUTS, *[width] * DEPTH]
    return nn.ModuleList(
        nn.Sequential(nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()) for i in range(DEPTH)
    )


def local_step(blocks: nn.ModuleList, x: Tensor, gradient: LocalGradient) -> Callable[[], None]:
    """Each block learns from the gradient at its own output; nothing crosses a border."""
    optimiser = torch.optim.Adam(blocks.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        feature = x
        for i, block in enumerate(blocks):
            feature = block(feature.detach())
            feature.backward(gradient(feature.detach(), i))
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def backprop_step(
    blocks: nn.ModuleList, x: Tensor, labels: Tensor, width: int
) -> Callable[[], None]:
    """The same network end to end, with a linear read-out and cross-entropy."""
    head = nn.Linear(width, CLASSES)
    parameters = [*blocks.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step() -> None:
        feature = x
        for block in blocks:
            feature = block(feature)
        F.cross_entropy(head(feature), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def loss_gradient(name: str, tables: list[Tensor], labels: Tensor) -> LocalGradient:
    """The gradient of a local loss by its value-and-gradient twin."""

    def gradient(feature: Tensor, block: int) -> Tensor:
        if name == "posterior_kl bernoulli":
            _, (da,) = bk.posterior_kl_value_and_grad(
                feature, tables[block], "bernoulli", labels=labels
            )
        else:
            family = name.removeprefix("class_evidence_loss ")
            _, (da, _) = bk.class_evidence_loss_value_and_grad(
                feature, tables[block], labels, family, wrt=("a", "table")
            )
        return da

    return gradient


@pytest.mark.parametrize(
    "loss",
    ["posterior_kl bernoulli", "class_evidence_loss gaussian", "class_evidence_loss bernoulli"],
)
def test_local_step(report: Callable[..., Record], quick: bool, loss: str) -> None:
    """No slower than 1.03 times a free loss, and faster than backprop."""
    width, batch = (16, 8) if quick else (1024, 256)
    torch.manual_seed(1)
    x, labels = torch.randn(batch, INPUTS), torch.randint(CLASSES, (batch,))
    tables = [torch.randn(CLASSES, width) / width**0.5 for _ in range(DEPTH)]
    constant = torch.full((batch, width), 1e-4)

    ours = local_step(network(width), x, loss_gradient(loss, tables, labels))
    peers = {
        "free loss": local_step(network(width), x, lambda feature, block: constant),
        "backprop": backprop_step(network(width), x, labels, width),
    }
    report(
        f"local step, MLP {INPUTS}-{width}x{DEPTH}, batch {batch}, {loss}",
        ours,
        peers,
        [Goal("free loss", 1 / 1.03), Goal("backprop", 1.0)],
    )
