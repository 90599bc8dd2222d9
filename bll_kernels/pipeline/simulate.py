"""What a schedule costs: every lane runs its operations in order, as soon as it may. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bll_kernels.pipeline.schedule import Kind, Op, needs

Key = tuple[int, int, Kind]
#: Duration of an operation, any unit of time.
Duration = Callable[[Op], float]


@dataclass(frozen=True)
class BlockTimes:
    """Durations of one block's operations on one micro-batch, in any unit of time."""

    forward: float
    loss: float = 0.0
    backward: float = 0.0
    update: float = 0.0

    def of(self, kind: Kind) -> float:
        """The duration of a kind of operation."""
        return {
            Kind.FORWARD: self.forward,
            Kind.LOSS: self.loss,
            Kind.BACKWARD: self.backward,
            Kind.UPDATE: self.update,
        }[kind]


@dataclass(frozen=True)
class Timeline:
    """A simulated run.

    Attributes:
        start: When each operation starts, in the unit of the durations.
        end: When it ends.
        busy: Time each lane works.
    """

    start: Mapping[Op, float]
    end: Mapping[Op, float]
    busy: Sequence[float]

    @property
    def makespan(self) -> float:
        """Time from the first start to the last end."""
        return max(self.end.values(), default=0.0)

    @property
    def utilisation(self) -> float:
        """Share of the lanes' time in which they work, 0 to 1."""
        whole = self.makespan * len(self.busy)
        return sum(self.busy) / whole if whole else 0.0

    @property
    def bubble(self) -> float:
        """Share of the lanes' time in which they wait."""
        return 1.0 - self.utilisation


def simulate(
    ops: Sequence[Op],
    duration: Duration | Sequence[BlockTimes],
    *,
    lanes: int | None = None,
    slots: int | None = None,
    backprop: bool = False,
) -> Timeline:
    """Runs a schedule with given durations.

    Args:
        ops: The schedule.
        duration: Of an operation; or the times of every block.
        lanes: Devices (or workers) the blocks are shared out to in turn; one per block by default.
        slots: Buffers at a border: a block's forward waits until the next block is done, backward
            included, with the output that many micro-batches before. None: any number.
        backprop: Whether gradients cross borders.

    Returns:
        The timeline.

    Raises:
        ValueError: `slots` or `lanes` below 1, or an operation waits for one that never runs.
    """
    blocks = 1 + max((op.block for op in ops), default=-1)
    lanes = max(blocks, 1) if lanes is None else lanes
    for name, count in (("lanes", lanes), ("slots", slots)):
        if count is not None and count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    if not callable(duration) and len(duration) != blocks:
        raise ValueError(f"duration: expected {blocks} blocks, got {len(duration)}")

    def of(op: Op) -> float:
        return duration(op) if callable(duration) else duration[op.block].of(op.kind)

    queues: list[list[Op]] = [[] for _ in range(lanes)]
    for op in ops:
        queues[op.block % lanes].append(op)
    ended: dict[Key, float] = {}
    start: dict[Op, float] = {}
    end: dict[Op, float] = {}
    free, busy = [0.0] * lanes, [0.0] * lanes
    position = [0] * lanes
    moved = True
    while moved:
        moved = False
        for lane, queue in enumerate(queues):
            while position[lane] < len(queue):
                op = queue[position[lane]]
                waits = needs(op, blocks, backprop=backprop) + _space(op, blocks, slots)
                if any(key not in ended for key in waits):
                    break
                start[op] = max([free[lane], *(ended[key] for key in waits)])
                free[lane] = end[op] = start[op] + of(op)
                busy[lane] += of(op)
                ended[op.block, op.micro_batch, op.kind] = end[op]
                position[lane] += 1
                moved = True
    stuck = [
        queue[position[lane]] for lane, queue in enumerate(queues) if position[lane] < len(queue)
    ]
    if stuck:
        raise ValueError(f"ops: {stuck[0]} waits for an operation that never runs")
    return Timeline(start, end, busy)


def simulate_workers(
    ops: Sequence[Op],
    duration: Duration | Sequence[BlockTimes],
    *,
    workers: int,
    slots: int = 2,
) -> Timeline:
    """Runs a schedule of local learning as the executor's worker threads do.

    A worker that is free takes the next local step of the schedule, whichever block it is of, and
    starts it as soon as its input, the block and the slot behind it are free.

    Args:
        ops: A schedule, as `pipelined` makes it.
        duration: Of an operation, or of every block.
        workers: Threads, each with a processor of its own.
        slots: Outputs a border holds.

    Returns:
        The timeline; `busy` is by worker.

    Raises:
        ValueError: `workers` or `slots` below 1, or the ops are of another schedule.
    """
    for name, count in (("workers", workers), ("slots", slots)):
        if count < 1:
            raise ValueError(f"{name}: expected at least 1, got {count}")
    blocks = 1 + max((op.block for op in ops), default=-1)
    free, busy = [0.0] * workers, [0.0] * workers
    sent: dict[tuple[int, int], float] = {}
    done: dict[tuple[int, int], float] = {}
    start: dict[Op, float] = {}
    end: dict[Op, float] = {}
    steps: dict[tuple[int, int], list[Op]] = {}
    for op in ops:
        steps.setdefault((op.block, op.micro_batch), []).append(op)
    for (block, micro_batch), parts in steps.items():
        worker = min(range(workers), key=free.__getitem__)
        now = free[worker]
        try:
            if block:
                now = max(now, sent[block - 1, micro_batch])
            if micro_batch:
                now = max(now, done[block, micro_batch - 1])
            if block + 1 < blocks and micro_batch >= slots:
                now = max(now, done[block + 1, micro_batch - slots])
        except KeyError as missing:
            raise ValueError(
                f"ops: {parts[0]} comes before {missing}, for which it waits"
            ) from None
        for op in parts:
            length = duration(op) if callable(duration) else duration[block].of(op.kind)
            start[op] = now
            now = end[op] = now + length
            busy[worker] += length
            if op.kind is Kind.FORWARD:
                sent[block, micro_batch] = now
        free[worker] = done[block, micro_batch] = now
    return Timeline(start, end, busy)


def _space(op: Op, blocks: int, slots: int | None) -> list[Key]:
    """The backward that frees the slot a forward writes to: it reads the block's input."""
    if slots is None or op.kind is not Kind.FORWARD or op.block + 1 == blocks:
        return []
    freed = op.micro_batch - slots
    return [(op.block + 1, freed, Kind.BACKWARD)] if freed >= 0 else []


def peak_activation_bytes(
    ops: Sequence[Op],
    timeline: Timeline,
    saved_bytes: Sequence[int],
    boundary_bytes: Sequence[int] = (),
    *,
    slots: int = 2,
) -> int:
    """Most bytes of saved activations alive at once, and the rings between the blocks.

    Args:
        ops: The schedule.
        timeline: Its simulation.
        saved_bytes: What block k keeps from the start of a forward to the end of its backward, for
            one micro-batch.
        boundary_bytes: Output of block k for one micro-batch; the rings hold `slots` of each.
        slots: Outputs a ring holds.
    """
    backward = {(op.block, op.micro_batch): op for op in ops if op.kind is Kind.BACKWARD}
    changes: list[tuple[float, int]] = []
    for op in ops:
        if op.kind is Kind.FORWARD:
            size = saved_bytes[op.block]
            changes.append((timeline.start[op], size))
            changes.append((timeline.end[backward[op.block, op.micro_batch]], -size))
    # What ends at an instant is gone before what starts then is there.
    alive = most = 0
    for _, change in sorted(changes):
        alive += change
        most = max(most, alive)
    return most + slots * sum(boundary_bytes)
