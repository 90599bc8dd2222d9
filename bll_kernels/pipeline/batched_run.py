"""A run in the ticks of the schedule, in which equal blocks take their local steps as one.

Within a tick blocks do not see each other, and every input is there from the tick before: the local
steps of one tick may run in any order, or at once. One thread, or one lane of a device, does all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from bll_kernels.pipeline.batched import Stack
from bll_kernels.pipeline.block import Batch
from bll_kernels.pipeline.equal import equal_blocks
from bll_kernels.pipeline.faults import note
from bll_kernels.pipeline.run import Run
from bll_kernels.pipeline.schedule import Kind, pipelined

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor

Place = tuple[int, int]


def stack_of(executor: Executor, local_step: str) -> tuple[Stack, range]:
    """The longest row of equal blocks of an executor, stacked, and where it stands.

    Raises:
        ValueError: mode or local step cannot be batched, or no neighbouring blocks are equal.
    """
    if executor.mode != "pipelined":
        raise ValueError(f"batched_blocks: expected mode 'pipelined', got {executor.mode!r}")
    if local_step == "autograd":
        raise ValueError("batched_blocks: expected traced steps, got local_step 'autograd'")
    found = equal_blocks(executor.blocks, executor.optimizers)
    stack = Stack(
        [executor.blocks[at] for at in found],
        [executor.optimizers[at] for at in found],
        executor.micro_batches,
        compiled=local_step == "compiled",
    )
    return stack, found


class BatchedRun(Run):
    """The local steps of some batches.

    Args:
        executor: Whose blocks are run.
        stack: The equal ones.
        first: Number of the first of them.
        inputs: Micro-batches.
    """

    def __init__(self, executor: Executor, stack: Stack, first: int, inputs: list[Batch]) -> None:
        super().__init__(executor, inputs, "batched")
        self.stack = stack
        self.members = range(first, first + len(stack.blocks))
        count = executor.micro_batches
        self.ticks = _ticks(
            len(executor.blocks), executor.depth, count, len(inputs) // count, executor.slots
        )

    def execute(self) -> None:
        """Runs everything, in the calling thread."""
        before = torch.get_num_threads()
        if before != self.executor.threads:
            torch.set_num_threads(self.executor.threads)
        try:
            with torch.no_grad():
                self.stack.begin()
                for tick in self.ticks:
                    self._tick(tick)
        except BaseException:
            # Whoever keeps the error keeps this frame, and this run.
            self.outputs.clear()
            raise
        finally:
            if before != self.executor.threads:
                torch.set_num_threads(before)

    def _tick(self, tick: Sequence[Place]) -> None:
        together = []
        for block, micro_batch in tick:
            if block in self.members:
                together.append((block, micro_batch))
            else:
                self._local_step(block, micro_batch)
        for group in _neighbours(together):
            self._batched_step(group)

    def _batched_step(self, group: Sequence[Place]) -> None:
        low = group[0][0] - self.members.start
        count = self.executor.micro_batches
        ends = [(micro_batch + 1) % count == 0 for _, micro_batch in group]
        try:
            x = torch.stack([self._input(*place) for place in group])
            labels = torch.stack([self.inputs[micro_batch][1] for _, micro_batch in group])
            outputs, losses = self.stack.step(low, low + len(group), x, labels, ends)
        except BaseException as error:
            for block, micro_batch in group:
                note(error, self.executor.blocks[block].name, self.stack.doing, micro_batch)
            # Whoever keeps the error keeps this frame; it must not keep the activations.
            x = labels = None  # type: ignore[assignment]
            raise
        for place, output, loss in zip(group, outputs.unbind(), losses.unbind(), strict=True):
            block, micro_batch = place
            self.outputs[place] = output
            self.losses[place] = loss
            self.done.add(place)
            if block > 0:
                del self.outputs[block - 1, micro_batch]


def _neighbours(group: Sequence[Place]) -> list[list[Place]]:
    """The same, sorted by block and cut where a block is left out."""
    found: list[list[Place]] = []
    for place in sorted(group):
        if found and found[-1][-1][0] + 1 == place[0]:
            found[-1].append(place)
        else:
            found.append([place])
    return found


@lru_cache(maxsize=64)
def _ticks(
    blocks: int, depth: int, micro_batches: int, batches: int, slots: int
) -> tuple[tuple[Place, ...], ...]:
    """(block, micro-batch) of the local steps, tick by tick."""
    found: dict[int, list[Place]] = {}
    for op in pipelined(
        blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots
    ):
        if op.kind is Kind.FORWARD:
            found.setdefault(op.tick, []).append((op.block, op.micro_batch))
    return tuple(tuple(tick) for _, tick in sorted(found.items()))
