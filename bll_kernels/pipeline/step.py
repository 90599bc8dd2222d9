"""A block's local step in its parts, as the executor runs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Block

#: torch's CPU generator is one for the process: whoever draws from it, or traces, holds this.
GENERATOR: Final = threading.RLock()


class Updater(Protocol):
    """What updates one block: a `torch.optim` optimiser, or a part of one."""

    def step(self) -> Any:
        """Update the block from its parameters' gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop those gradients."""


class LocalStep(Protocol):
    """One block on one micro-batch; the parts are called in this order."""

    @property
    def path(self) -> str:
        """How it runs, for reports: "traced", "compiled", or "autograd" and the reason."""

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """The block's output, detached, and what the loss needs."""

    def loss(self, saved: Any) -> tuple[Tensor, Any]:
        """Local loss, 0-dim and detached, and what the backward needs."""

    def backward(self, saved: Any) -> None:
        """Add the micro-batch's gradients to those of the block."""

    def update(self) -> None:
        """Update the block from the mean of its micro-batches' gradients, and drop those."""

    def drop(self) -> None:
        """Drop what gradients there are: the batch has failed."""


class AutogradStep:
    """The step by autograd, which serves every block.

    Args:
        block: The block.
        updater: Of the block's parameters.
        micro_batches: Micro-batches of a batch.
    """

    path = "autograd"

    def __init__(self, block: Block, updater: Updater, micro_batches: int) -> None:
        self.block = block
        self.updater = updater
        self.micro_batches = micro_batches

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `LocalStep`; what is saved is the output with its graph."""
        with torch.enable_grad():
            output = self.block.forward(x.detach())
        return output.detach(), (output, labels)

    def loss(self, saved: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """See `LocalStep`; what is saved is the output with its graph, and its gradient."""
        output, labels = saved
        with torch.enable_grad():
            loss, gradient = self.block.loss_and_grad(output.detach(), labels)
        return loss.detach(), (output, gradient)

    def backward(self, saved: tuple[Tensor, Tensor]) -> None:
        """See `LocalStep`."""
        output, gradient = saved
        if output.requires_grad:
            output.backward(gradient)

    def update(self) -> None:
        """See `LocalStep`."""
        if self.micro_batches > 1:
            divide_gradients(self.block.parameters(), self.micro_batches)
        self.updater.step()
        self.updater.zero_grad(set_to_none=True)

    def drop(self) -> None:
        """See `LocalStep`."""
        self.updater.zero_grad(set_to_none=True)


def divide_gradients(parameters: Sequence[Tensor], parts: int) -> None:
    """Divide sums over micro-batches in place: every part is a mean over its samples."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.grad.div_(parts)


def direct_update(
    updater: Updater, parameters: Sequence[Tensor], method: str
) -> Callable[[Sequence[Tensor | None]], object] | None:
    """How an updater takes gradients that no parameter holds; None: it does not.

    An optimiser of this package does, without what torch puts around `step`, which takes longer
    than the kernel of a small block.
    """
    step: Callable[[Sequence[Tensor | None]], object] | None = getattr(updater, method, None)
    groups = getattr(updater, "param_groups", None)
    if step is None or groups is None:
        return step
    known = [[id(p) for p in group["params"]] for group in groups]
    return step if known == [[id(p) for p in parameters]] else None
