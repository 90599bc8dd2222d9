"""What the executor runs: blocks that learn from their own output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

#: What is a block's own: its steps are exact in any order of blocks.
LOCAL_READS: Final = frozenset({"input", "output", "label", "feedback"})


#: Input and labels.
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class StepResult:
    """What a batch gave.

    Attributes:
        losses: Local loss of every block, by name, a mean over the batch: 0-dim, detached.
        output: Output of the last block, [batch, ...], detached.
    """

    losses: dict[str, Tensor]
    output: Tensor


def split_batch(x: Tensor, labels: Tensor, count: int) -> list[Batch]:
    """The micro-batches of a batch.

    Args:
        x: [batch, ...].
        labels: [batch, ...].
        count: How many.

    Raises:
        TypeError: one is no tensor.
        ValueError: the batch is empty or does not divide, or the numbers of samples differ.
    """
    for name, value in (("x", x), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.dim() == 0:
            raise ValueError(f"{name}: expected a batch of samples, got a tensor without axes")
    size = len(x)
    if len(labels) != size:
        raise ValueError(f"labels: expected {size}, one per sample, got {len(labels)}")
    if size == 0 or size % count:
        raise ValueError(f"x: expected a batch that divides into {count} parts, got {size}")
    if count == 1:
        return [(x, labels)]
    return list(zip(x.chunk(count), labels.chunk(count), strict=True))


class Block(Protocol):
    """A block of a network with its local loss; the executor knows no `nn.Module`.

    Attributes:
        name: Names the block in errors and reports.
        reads: What its loss reads: "output" (its own), "label", "feedback" (its own message),
            "input" (its own), or parameters of other blocks, see
            `bll_kernels.pipeline.certificate`.
    """

    name: str
    reads: frozenset[str]

    def parameters(self) -> Sequence[Tensor]:
        """Everything the block trains, its message included."""

    def forward(self, x: Tensor) -> Tensor:
        """The block's output [batch, ...] from its input, with a graph inside the block."""

    def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Local loss, 0-dim and a mean over the batch, and its gradient to `output` (detached).

        Gradients of what the loss itself trains, such as a message table, are added to those
        parameters' `grad`.
        """
