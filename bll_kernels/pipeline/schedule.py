"""Schedules: which block does what, on which micro-batch, in which order. Pure functions.

A schedule is a list of operations. Every lane (one block, or one pipeline stage) runs its own
operations in the order of the list; `needs` says what an operation waits for beyond that. The tick
of a local step is a unit of time in which each block in flight handles one micro-batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What an operation does with its block and micro-batch."""

    FORWARD = "forward"  # and sends the output on
    LOSS = "loss"  # local loss and its gradient at the block's output
    BACKWARD = "backward"  # inside the block; inputs and weights
    UPDATE = "update"  # the block's parameters, after the last micro-batch of a batch


@dataclass(frozen=True, order=True)
class Op:
    """One operation.

    Attributes:
        tick: Unit of time it belongs to; operations of one tick may run at once.
        block: Block, or stage, from 0.
        micro_batch: Micro-batch, counted through all batches.
        kind: What is done.
    """

    tick: int
    block: int
    micro_batch: int
    kind: Kind

    def __post_init__(self) -> None:
        if min(self.tick, self.block, self.micro_batch) < 0:
            raise ValueError(f"op: expected numbers of at least 0, got {self}")


def _check(**counts: int) -> None:
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"{name}: expected an int, got {type(count).__name__}")
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")


def _local_step(tick: int, block: int, micro_batch: int, micro_batches: int) -> Iterator[Op]:
    """A block's work on a micro-batch. Its output is on the way before its own loss is taken."""
    kinds = [Kind.FORWARD, Kind.LOSS, Kind.BACKWARD]
    if (micro_batch + 1) % micro_batches == 0:
        kinds.append(Kind.UPDATE)
    for kind in kinds:
        yield Op(tick, block, micro_batch, kind)


def pipelined(
    blocks: int, *, depth: int, micro_batches: int = 1, batches: int = 1, slots: int = 2
) -> list[Op]:
    """Local learning with `depth` blocks in flight; consecutive batches overlap, with no flush.

    Block k takes micro-batch j one tick or more after block k - 1 took it. Where fewer blocks may
    be in flight than are ready, the oldest micro-batch goes first.

    Args:
        blocks: Blocks, at least 1.
        depth: Blocks in flight, 1 (as `sequential`) to `blocks`.
        micro_batches: Micro-batches of a batch; a block updates after the last of them.
        batches: Batches in a row.
        slots: Buffers between two blocks; one is the next block's until its backward is done, so
            two let both work at once.

    Raises:
        ValueError: a count is below 1, or `depth` above `blocks`.
    """
    _check(blocks=blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots)
    if depth > blocks:
        raise ValueError(f"depth: expected at most {blocks}, the number of blocks, got {depth}")
    total = micro_batches * batches
    done = [0] * blocks  # micro-batches each block has handled before this tick
    found: list[Op] = []
    tick = 0
    while done[-1] < total:
        ready = [
            block
            for block in range(blocks)
            if done[block] < total
            and (block == 0 or done[block] < done[block - 1])
            and (block == blocks - 1 or done[block] - done[block + 1] < slots)
        ]
        chosen = sorted(ready, key=lambda block: (done[block], -block))[:depth]
        for block in chosen:
            found += _local_step(tick, block, done[block], micro_batches)
        for block in chosen:
            done[block] += 1
        tick += 1
    return found


def sequential(blocks: int, *, micro_batches: int = 1, batches: int = 1) -> list[Op]:
    """Local learning one block at a time: the reference every other schedule must equal.

    Raises:
        ValueError: a count is below 1.
    """
    return pipelined(blocks, depth=1, micro_batches=micro_batches, batches=batches)


def _in_order(lanes: Sequence[Sequence[tuple[int, Kind]]]) -> list[Op]:
    """Per-stage orders as one list; the ticks are those of unit times."""
    position = [0] * len(lanes)
    ended: dict[tuple[int, int, Kind], int] = {}
    found: list[Op] = []
    tick = 0
    while any(position[s] < len(lane) for s, lane in enumerate(lanes)):
        now = []
        for stage, lane in enumerate(lanes):
            if position[stage] == len(lane):
                continue
            micro_batch, kind = lane[position[stage]]
            op = Op(tick, stage, micro_batch, kind)
            waits = needs(op, len(lanes), backprop=True)
            if all(ended.get(key, tick) < tick for key in waits):
                now.append(op)
        if not now:
            raise RuntimeError(f"no stage can go on at tick {tick}: {lanes}")
        for op in now:
            position[op.block] += 1
            ended[op.block, op.micro_batch, op.kind] = tick
        found += now
        tick += 1
    return found


def gpipe(stages: int, *, micro_batches: int) -> list[Op]:
    """End-to-end backpropagation: all forwards, then all backwards, then the update.

    Raises:
        ValueError: a count is below 1.
    """
    _check(stages=stages, micro_batches=micro_batches)
    last = micro_batches - 1
    order = [(j, Kind.FORWARD) for j in range(micro_batches)]
    order += [(j, Kind.BACKWARD) for j in range(micro_batches)] + [(last, Kind.UPDATE)]
    return _in_order([order] * stages)


def one_forward_one_backward(stages: int, *, micro_batches: int) -> list[Op]:
    """End-to-end backpropagation in which stage s holds at most `stages - s` micro-batches.

    Raises:
        ValueError: a count is below 1.
    """
    _check(stages=stages, micro_batches=micro_batches)
    lanes = []
    for stage in range(stages):
        ahead = min(stages - stage - 1, micro_batches)
        order = [(j, Kind.FORWARD) for j in range(ahead)]
        for j in range(micro_batches):
            if ahead + j < micro_batches:
                order.append((ahead + j, Kind.FORWARD))
            order.append((j, Kind.BACKWARD))
        lanes.append([*order, (micro_batches - 1, Kind.UPDATE)])
    return _in_order(lanes)


def needs(op: Op, blocks: int, *, backprop: bool = False) -> list[tuple[int, int, Kind]]:
    """What an operation waits for in other lanes: (block, micro-batch, kind).

    Args:
        op: The operation.
        blocks: Blocks, or stages, in all.
        backprop: Whether gradients cross borders (`gpipe`, `one_forward_one_backward`).
    """
    if op.kind is Kind.FORWARD and op.block > 0:
        return [(op.block - 1, op.micro_batch, Kind.FORWARD)]
    if backprop and op.kind is Kind.BACKWARD:
        own = [(op.block, op.micro_batch, Kind.FORWARD)]
        if op.block + 1 < blocks:
            own.append((op.block + 1, op.micro_batch, Kind.BACKWARD))
        return own
    return []


def in_flight(ops: Sequence[Op]) -> int:
    """Largest number of blocks that one tick keeps busy."""
    busy: dict[int, set[int]] = {}
    for op in ops:
        busy.setdefault(op.tick, set()).add(op.block)
    return max((len(blocks) for blocks in busy.values()), default=0)
