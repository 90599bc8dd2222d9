"""Which version of the parameters every read of a schedule sees. Pure functions.

A version is the number of updates a block has made. `sequential` is the reference: what a read sees
there is exact. Reads are declared by name (`Block.reads`):

* "output", "input", "label", "feedback": the block's own output and input, the labels, its own
  message;
* "previous", "next": parameters of the neighbour before or behind;
* "block:NAME": parameters of the block of that name;
* "next-feedback": what all blocks behind learn for their messages;
* "downstream", "error": gradients of later blocks, or of the output, and so the parameters of all
  blocks behind. No local step can wait for them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from bll_kernels.pipeline.block import LOCAL_READS, Block
from bll_kernels.pipeline.feedback import FeedbackPath, lag, lane_versions
from bll_kernels.pipeline.schedule import Kind, Op, pipelined

#: Reads of all blocks behind.
_BEHIND = frozenset({"next-feedback", "downstream", "error"})
#: Reads that are there only after a block's own step: no schedule of local steps can run them.
TOO_LATE = frozenset({"downstream", "error"})
#: Batches from which the steady state is read; the first ones fill the pipeline.
BATCHES = 8


@dataclass(frozen=True)
class Certificate:
    """Which parameters a block's steps read, against `sequential`.

    Attributes:
        block: Name of the block.
        stale_by: Updates by which what it reads may be older or newer than in `sequential`; 0 is
            exact.
        why: The reason, in words.
        reordered: Whether the step adds in another order than `sequential`, so that it agrees
            within rounding only.
    """

    block: str
    stale_by: int
    why: str
    reordered: bool = False

    def __str__(self) -> str:
        verdict = "exact" if self.stale_by == 0 else f"stale by {self.stale_by}"
        if self.reordered:
            verdict += ", reordered arithmetic"
        return f"{self.block}: {verdict} ({self.why})"


def versions(ops: Sequence[Op], reader: int, owner: int) -> list[int]:
    """Updates that block `owner` has made when block `reader` takes its losses, one per loss.

    An operation sees the updates of earlier ticks, and of its own tick those of its own block that
    come before it: within a tick blocks run at once and do not see each other.

    Args:
        ops: The schedule.
        reader: Block that reads.
        owner: Block whose parameters are read.
    """
    updates = [
        (op.tick, number)
        for number, op in enumerate(ops)
        if op.block == owner and op.kind is Kind.UPDATE
    ]
    return [
        sum(
            tick < op.tick or (reader == owner and tick == op.tick and before < number)
            for tick, before in updates
        )
        for number, op in enumerate(ops)
        if op.block == reader and op.kind is Kind.LOSS
    ]


def staleness(
    reader: int, owner: int, *, blocks: int, depth: int, micro_batches: int = 1, slots: int = 2
) -> int:
    """Most updates by which a read differs from `sequential`: positive is older, negative newer.

    Args:
        reader: Block that reads.
        owner: Block whose parameters are read.
        blocks: Blocks in all.
        depth: Blocks in flight.
        micro_batches: Micro-batches of a batch.
        slots: Buffers between two blocks.
    """
    found = []
    for width in (1, depth):
        ops = pipelined(
            blocks, depth=width, micro_batches=micro_batches, batches=BATCHES, slots=slots
        )
        found.append(versions(ops, reader, owner))
    differences: list[int] = [a - b for a, b in zip(*found, strict=True)]
    return max(differences, key=abs)


def certify(
    blocks: Sequence[Block],
    *,
    depth: int,
    micro_batches: int = 1,
    slots: int = 2,
    feedback: FeedbackPath | None = None,
) -> list[Certificate]:
    """Says for every block which version of what it reads a schedule shows it.

    A block sees its micro-batches in order and updates after the last one of a batch, so what is
    its own has the same version in every schedule.

    Args:
        blocks: The blocks.
        depth: Blocks in flight.
        micro_batches: Micro-batches of a batch.
        slots: Buffers between two blocks.
        feedback: What runs in a feedback lane and serves "next-feedback".

    Raises:
        ValueError: a block reads something unknown.
    """
    names = [block.name for block in blocks]
    found = []
    lane = lane_versions(len(blocks), depth, micro_batches, BATCHES, slots)
    for index, block in enumerate(blocks):
        worst, reasons = 0, []
        for read in sorted(block.reads - LOCAL_READS):
            if read == "next-feedback" and feedback is not None:
                owners = range(index + 1, feedback.blocks)
                older = {owner: lag(lane, owner) for owner in owners}
                worst = max([worst, *older.values()])
                reasons += [f"feedback lane: {names[k]}, {_state(by)}" for k, by in older.items()]
                continue
            for owner in _owners(read, index, names):
                by = staleness(
                    index,
                    owner,
                    blocks=len(blocks),
                    depth=depth,
                    micro_batches=micro_batches,
                    slots=slots,
                )
                worst = max(worst, abs(by))
                reasons.append(f"{read}: {names[owner]}, {_state(by)}")
        reads = ", ".join(sorted(block.reads & LOCAL_READS - {"input"}))
        why = f"reads its own input, parameters and {reads}"
        found.append(Certificate(block.name, worst, "; ".join([why, *reasons])))
    return found


def _state(by: int) -> str:
    return f"{by} older" if by > 0 else f"{-by} newer" if by else "the same"


def reordered(found: Sequence[Certificate], blocks: Collection[int]) -> list[Certificate]:
    """The same, where some blocks' steps add in another order than `sequential`."""
    return [
        replace(certificate, reordered=True) if index in blocks else certificate
        for index, certificate in enumerate(found)
    ]


def _owners(read: str, index: int, names: Sequence[str]) -> Collection[int]:
    """The blocks whose parameters a read shows."""
    if read in _BEHIND:
        return range(index + 1, len(names))
    if read == "previous":
        return [index - 1] if index else []
    if read == "next":
        return [index + 1] if index + 1 < len(names) else []
    kind, _, name = read.partition(":")
    if kind == "block" and name in names:
        return [names.index(name)]
    raise ValueError(
        f"blocks: {names[index]!r} reads {read!r}; expected input, output, label, feedback, "
        f"previous, next, block:NAME of one of the blocks, {', '.join(sorted(_BEHIND))}"
    )


def refuse_what_cannot_run(blocks: Sequence[Block], depth: int, *, feedback: bool = False) -> None:
    """Refuses reads of other blocks' parameters that no worker could do.

    Workers keep to the order of a schedule only where its operations depend on each other. A read
    of another block's parameters would therefore meet their update half done. "next-feedback" is
    served from copies where there is a feedback lane.

    Raises:
        ValueError: a block needs gradients of later blocks, which come after its own step; or reads
            parameters of other blocks while several are in flight.
    """
    for block in blocks:
        served = {"next-feedback"} if feedback else set()
        foreign = ", ".join(sorted(block.reads - LOCAL_READS - served))
        if block.reads & TOO_LATE:
            raise ValueError(
                f"blocks: {block.name!r} reads {foreign}: gradients from behind it, for which no "
                "local step can wait"
            )
        if foreign and depth > 1:
            raise ValueError(
                f"blocks: {block.name!r} reads {foreign}, which other blocks change meanwhile; "
                f"expected depth 1, got {depth}"
            )
