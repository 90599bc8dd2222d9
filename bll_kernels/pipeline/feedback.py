"""What comes down to blocks from the feedback weights of blocks behind, in a lane of its own.

A feedback path that depends on labels and feedback weights alone can run beside the blocks: once a
batch, from copies of the weights that blocks publish when they have updated. The schedule says
which versions it reads, so that a run ends with the same bits whatever runs when; where blocks are
in flight together these versions are older than with one block at a time (`lag`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from torch import Tensor

from bll_kernels.pipeline.schedule import Kind, Op, pipelined


class FeedbackPath(Protocol):
    """A feedback path that can be run apart from the blocks.

    Attributes:
        blocks: How many blocks, the first ones, have feedback weights. All but the first block's
            are published: nothing before it could read those.
    """

    blocks: int

    def begin(self) -> None:
        """A run begins: losses read what was received last, and not other blocks' weights."""

    def end(self) -> None:
        """The run is over: losses read other blocks' weights again."""

    def publish(self, block: int) -> list[Tensor]:
        """Copies of what the path reads of a block behind the first, as it is now."""

    def run(self, published: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
        """What comes down to each block; None: nothing does.

        Args:
            published: By each block, nothing by the first.
        """

    def receive(self, block: int, value: Tensor) -> None:
        """Copy what has come down to a block to where its losses read it."""


def feedback_versions(
    ops: Sequence[Op], blocks: int, *, micro_batches: int = 1
) -> list[tuple[int, ...]]:
    """For every batch, the version of each block's weights that the feedback lane reads.

    The newest that is there, in the order of the schedule, when the first block takes the batch.

    Args:
        ops: The schedule, of local learning.
        blocks: Blocks in all.
        micro_batches: Micro-batches of a batch.
    """
    begins = [
        op.tick
        for op in ops
        if op.block == 0 and op.kind is Kind.FORWARD and op.micro_batch % micro_batches == 0
    ]
    updates = [
        sorted(op.tick for op in ops if op.block == block and op.kind is Kind.UPDATE)
        for block in range(blocks)
    ]
    return [tuple(bisect_left(own, begin) for own in updates) for begin in begins]


@lru_cache(maxsize=64)
def lane_versions(
    blocks: int, depth: int, micro_batches: int, batches: int, slots: int
) -> tuple[tuple[int, ...], ...]:
    """`feedback_versions` of a pipelined schedule."""
    ops = pipelined(blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots)
    return tuple(feedback_versions(ops, blocks, micro_batches=micro_batches))


def lag(versions: Sequence[Sequence[int]], owner: int) -> int:
    """Most updates by which the lane's weights of a block are older than with one in flight."""
    # There, whoever reads the weights of a block behind it sees an update for each batch before.
    return max(batch - seen[owner] for batch, seen in enumerate(versions))


class FeedbackRun:
    """What the lane has read and what it has given, in one run.

    Args:
        path: The path.
        versions: See `feedback_versions`.
        blocks: Blocks in all.

    Attributes:
        fed: Batches whose feedback has been run.
        given: By batch, what comes down to each block.
        taken: By batch, the blocks that have received it.
    """

    def __init__(
        self, path: FeedbackPath, versions: Sequence[tuple[int, ...]], blocks: int
    ) -> None:
        self.path = path
        self.versions = versions
        self.blocks = blocks
        self.fed = 0
        self.owners = range(1, path.blocks)
        self.wanted = [{seen[block] for seen in versions} for block in range(path.blocks)]
        self.published: list[dict[int, list[Tensor]]] = [{} for _ in range(path.blocks)]
        self.given: dict[int, list[Tensor | None]] = {}
        self.taken: dict[int, set[int]] = {}

    def begin(self) -> None:
        """Start from the weights as they are."""
        self.path.begin()
        for block in self.owners:
            self.publish_first(block)

    def publish_first(self, block: int) -> None:
        """A block's weights as they are before the run; the path has begun."""
        self.published[block][0] = self.path.publish(block)

    def is_ready(self, batch: int) -> bool:
        """Whether all that the batch's feedback reads is published."""
        wanted = self.versions[batch]
        return all(wanted[block] in self.published[block] for block in self.owners)

    def run(self, batch: int) -> None:
        """The feedback of a batch."""
        wanted = self.versions[batch]
        read = [self.published[block][wanted[block]] for block in self.owners]
        self.given[batch] = self.path.run([[], *read])
        self.fed = batch + 1

    def receive(self, block: int, batch: int) -> list[Tensor]:
        """A block receives what has come down, before its first micro-batch of a batch.

        Returns:
            What the block had published and no later feedback reads: no longer kept.
        """
        value = self.given[batch][block] if block < self.path.blocks else None
        if value is not None:
            self.path.receive(block, value)
        self.taken.setdefault(batch, set()).add(block)
        if block not in self.owners:
            return []
        following = batch + 1
        is_last = following == len(self.versions)
        least = following + 1 if is_last else self.versions[following][block]
        old = [version for version in self.published[block] if version < least]
        return [tensor for version in old for tensor in self.published[block].pop(version)]

    def publish(self, block: int, batch: int) -> None:
        """A block has updated behind a batch."""
        version = batch + 1
        if block in self.owners and version in self.wanted[block]:
            self.published[block][version] = self.path.publish(block)

    def over(self) -> list[int]:
        """Batches whose feedback every block has received."""
        return [batch for batch, blocks in self.taken.items() if len(blocks) == self.blocks]

    def release(self, batch: int) -> list[Tensor]:
        """What came down in a batch that is over: no longer kept."""
        self.taken.pop(batch, None)
        return [value for value in self.given.pop(batch) if value is not None]
