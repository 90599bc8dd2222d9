"""What the executor runs: blocks that learn from their own output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from torch import Tensor

#: What a block's loss may read for its steps to be exact in any order of blocks.
LOCAL_READS: Final = frozenset({"output", "label", "feedback"})


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


class Block(Protocol):
    """A block of a network with its local loss; the executor knows no `nn.Module`.

    Attributes:
        name: Names the block in errors and reports.
        reads: What its loss reads: "output" (its own), "label", "feedback" (its own message).
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


@dataclass(frozen=True)
class Certificate:
    """Which parameters a block's steps read, against `sequential`.

    Attributes:
        block: Name of the block.
        stale_by: Updates by which what it reads may be older than in `sequential`; 0 is exact.
        why: The reason, in words.
    """

    block: str
    stale_by: int
    why: str

    def __str__(self) -> str:
        verdict = "exact" if self.stale_by == 0 else f"stale by {self.stale_by}"
        return f"{self.block}: {verdict} ({self.why})"


def certify(blocks: Sequence[Block]) -> list[Certificate]:
    """Says for every block that any schedule of `bll_kernels.pipeline` leaves it exact.

    A block sees its micro-batches in order, updates after the last one of a batch, and reads its
    input, the label and its own parameters only: so the version of everything it reads is the same
    in every schedule.

    Raises:
        ValueError: a block's loss reads what other blocks change.
    """
    found = []
    for block in blocks:
        foreign = block.reads - LOCAL_READS
        if foreign:
            raise ValueError(
                f"blocks: the loss of {block.name!r} reads {', '.join(sorted(foreign))}, which "
                "other blocks change; its steps cannot be run apart"
            )
        reads = ", ".join(sorted(block.reads))
        found.append(Certificate(block.name, 0, f"reads its own input, parameters and {reads}"))
    return found
