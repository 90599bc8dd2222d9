"""Runs the local steps of blocks in the order of a schedule, in turn or on worker threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from torch import Tensor

from bll_kernels.pipeline.block import Batch, Block, Certificate, StepResult, certify
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.run import Run
from bll_kernels.pipeline.schedule import pipelined
from bll_kernels.pipeline.step import AutogradStep, LocalStep, Updater

MODES: Final = ("sequential", "pipelined")


OptimizerFactory = Callable[[Sequence[Tensor]], Updater]


class Executor:
    """Local learning, block by block or with several blocks in flight.

    Parameters, buffers and optimiser states after a step are the same bits in every mode, depth
    and number of slots: `certificate` says why.

    Args:
        blocks: The blocks in order.
        optimizer_factory: Makes the optimiser of one block from its parameters.
        mode: "sequential" (in the calling thread) or "pipelined" (on `depth` worker threads).
        depth: Blocks in flight, 1 to the number of blocks; by default all.
        micro_batches: Equal parts a batch is cut into; gradients are means over the batch.
        slots: Buffers between two blocks.
        threads: Intra-op threads of a block, in every mode.
        seed: Of the random numbers of blocks that draw some in their forward, as dropout does.
            They depend on it, the block and the micro-batch only. Such forwards take turns; a
            block whose first forward draws none is taken never to draw any.

    Raises:
        ValueError: no block, two of one name, an unknown mode, or a number out of its range; or a
            block's loss reads what other blocks change.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        optimizer_factory: OptimizerFactory,
        *,
        mode: str = "sequential",
        depth: int | None = None,
        micro_batches: int = 1,
        slots: int = 2,
        threads: int = 1,
        seed: int = 0,
    ) -> None:
        names = [block.name for block in blocks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"blocks: expected one or more of different names, got {names}")
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.certificate: list[Certificate] = certify(blocks)
        self.depth = 1 if mode == "sequential" else len(names) if depth is None else depth
        # Checks the numbers, before anything is made.
        pipelined(len(names), depth=self.depth, micro_batches=micro_batches, slots=slots)
        self.blocks = list(blocks)
        self.mode = mode
        self.micro_batches = micro_batches
        self.slots = slots
        self.threads = threads
        self.seed = seed
        self.optimizers = [optimizer_factory(block.parameters()) for block in blocks]
        self.steps: list[LocalStep] = [
            AutogradStep(block, optimizer, micro_batches)
            for block, optimizer in zip(self.blocks, self.optimizers, strict=True)
        ]
        self.batches_done = 0
        self.draws: list[bool | None] = [None] * len(names)
        self.recorder: Recorder | None = None
        self._running = threading.Lock()

    def step(self, x: Tensor, labels: Tensor) -> StepResult:
        """One batch: forward, local losses, local backwards and updates of every block.

        Args:
            x: [batch, ...], the first block's input.
            labels: [batch, ...].

        Returns:
            Losses and output.

        Raises:
            ValueError: the batch does not divide into the micro-batches, or is empty.
            RuntimeError: a step is in progress in another thread.
            Exception: whatever a block raised first, with block, operation and micro-batch in a
                note. Blocks that had finished the batch have learnt from it; gradients of the
                others are dropped.
        """
        return self.run([(x, labels)])[0]

    def run(self, batches: Iterable[Batch]) -> list[StepResult]:
        """Several batches in a row, overlapping; as `step` on each in turn."""
        parts = [self._split(x, labels) for x, labels in batches]
        if not parts:
            return []
        if not self._running.acquire(blocking=False):
            raise RuntimeError("executor: a step is in progress in another thread")
        try:
            run = Run(self, [pair for part in parts for pair in part])
            run.execute()
            results = [run.result(index) for index in range(len(parts))]
            self.batches_done += len(parts)
            return results
        except BaseException:
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            raise
        finally:
            self._running.release()

    @contextmanager
    def recorded(self) -> Iterator[Recorder]:
        """Records the operations of the steps inside; without it nothing is recorded."""
        self.recorder = Recorder()
        try:
            yield self.recorder
        finally:
            self.recorder = None

    def _split(self, x: Tensor, labels: Tensor) -> list[Batch]:
        size, count = len(x), self.micro_batches
        if len(labels) != size:
            raise ValueError(f"labels: expected {size}, one per sample, got {len(labels)}")
        if size == 0 or size % count:
            raise ValueError(f"x: expected a batch that divides into {count} parts, got {size}")
        return list(zip(x.chunk(count), labels.chunk(count), strict=True))
