"""Runs the local steps of blocks in the order of a schedule, in turn or on worker threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, Protocol, TypeVar

import torch
from torch import Tensor

from bll_kernels.pipeline.batched import Stack
from bll_kernels.pipeline.batched_run import BatchedRun, stack_of
from bll_kernels.pipeline.block import Batch, Block, StepResult, split_batch
from bll_kernels.pipeline.certificate import (
    Certificate,
    certify,
    refuse_what_cannot_run,
    reordered,
)
from bll_kernels.pipeline.choice import Choice
from bll_kernels.pipeline.device import Device, default_device
from bll_kernels.pipeline.feedback import FeedbackPath, FeedbackRun, lane_versions
from bll_kernels.pipeline.graphed import CaptureError, GraphedSteps
from bll_kernels.pipeline.in_turn import InTurn
from bll_kernels.pipeline.run import Run
from bll_kernels.pipeline.schedule import pipelined
from bll_kernels.pipeline.step import LocalStep, Updater
from bll_kernels.pipeline.stream_run import StreamRun
from bll_kernels.pipeline.traced import LOCAL_STEPS, make_step

MODES: Final = ("sequential", "pipelined", "graphed", "auto")


OptimizerFactory = Callable[[Sequence[Tensor]], Updater]


class Watcher(Protocol):
    """What sees every part of the local steps of a run."""

    def watch(self, blocks: Sequence[Block], steps: Sequence[LocalStep]) -> list[LocalStep]:
        """Steps that do the same as these and are seen; asked for at the start of every run."""


WatcherT = TypeVar("WatcherT", bound=Watcher)


class Executor:
    """Local learning, block by block or with several blocks in flight.

    Parameters, buffers and optimiser states after a step are the same bits in every mode, depth
    and number of slots, unless arithmetic is reordered (`local_step="compiled"`,
    `batched_blocks`): `certificate` says why.

    Args:
        blocks: The blocks in order.
        optimizer_factory: Makes the optimiser of one block from its parameters.
        mode: "sequential" (in the calling thread); "pipelined" (on `depth` worker threads, or
            streams of a GPU); "graphed" (the pipelined step as a graph of the GPU); or "auto"
            (all that can run here, in turn, as steps of training; then the fastest, `choice`).
        depth: Blocks in flight, 1 to the number of blocks; by default all. "sequential": 1.
        micro_batches: Equal parts a batch is cut into; gradients are means over the batch.
        slots: Buffers between two blocks.
        threads: Intra-op threads of a block, in every mode.
        seed: Of the random numbers of blocks that draw some in their forward, as dropout does.
            They depend on it, the block and the micro-batch only. Such forwards take turns; a
            block whose first forward draws none is taken never to draw any.
        local_step: "auto": without autograd where a block can be traced (it has `trace_key`, and
            its trace agrees with autograd), else by autograd; "autograd"; "traced", which raises
            where it cannot; or "compiled", traced and then compiled by TorchInductor, whose
            arithmetic agrees within rounding only, also between modes. `paths` says which way
            each block takes.
        batched_blocks: Run the longest row of equal blocks (`equal_blocks`), where they are in
            flight together, as one batched step over stacked parameters, whose arithmetic agrees
            within rounding only. Needs mode "pipelined", and then works in the calling thread, or
            the current stream of a GPU; compiled where `local_step` says so. Blocks that draw
            random numbers are refused at the first batch: one batched draw has one stream.
        feedback: What serves "next-feedback" from a lane of its own, where several blocks are in
            flight in mode "pipelined": messages are then older than with one, see `certificate`.
        device: Where the blocks work; by default the GPU of their parameters, or None, the CPU.

    Raises:
        ValueError: no block, two of one name, an unknown mode, one that cannot run here, or a
            number out of its range; or a block reads what no step can wait for, or, with several
            blocks in flight, parameters of other blocks; or no neighbouring blocks are equal.
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
        local_step: str = "auto",
        batched_blocks: bool = False,
        feedback: FeedbackPath | None = None,
        device: Device | None = None,
    ) -> None:
        names = [block.name for block in blocks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"blocks: expected one or more of different names, got {names}")
        if mode not in MODES:
            raise ValueError(f"mode: expected one of {', '.join(MODES)}, got {mode!r}")
        if local_step not in LOCAL_STEPS:
            raise ValueError(
                f"local_step: expected one of {', '.join(LOCAL_STEPS)}, got {local_step!r}"
            )
        if threads < 1:
            raise ValueError(f"threads: expected at least 1, got {threads}")
        self.depth = 1 if mode == "sequential" else len(names) if depth is None else depth
        # Checks the numbers, before anything is made.
        pipelined(len(names), depth=self.depth, micro_batches=micro_batches, slots=slots)
        has_lane = mode == "pipelined" and self.depth > 1 and not batched_blocks
        self.feedback = feedback if has_lane else None
        self.certificate: list[Certificate] = certify(
            blocks,
            depth=self.depth,
            micro_batches=micro_batches,
            slots=slots,
            feedback=self.feedback,
        )
        refuse_what_cannot_run(blocks, self.depth, feedback=self.feedback is not None)
        self.blocks = list(blocks)
        self.mode = mode
        self.micro_batches = micro_batches
        self.slots = slots
        self.threads = threads
        self.seed = seed
        self.optimizers = [optimizer_factory(block.parameters()) for block in blocks]
        self.steps: list[LocalStep] = [
            make_step(block, optimizer, micro_batches, local_step)
            for block, optimizer in zip(self.blocks, self.optimizers, strict=True)
        ]
        self.in_turn = InTurn(self)
        self.stack: Stack | None = None
        self.stacked = range(0)
        if batched_blocks:
            self.stack, self.stacked = stack_of(self, local_step)
            self.certificate = reordered(self.certificate, self.stacked)
        self.batches_done = 0
        self.draws: list[bool | None] = [None] * len(names)
        self.draws_on_host = [False] * len(names)
        self.device = default_device(self.blocks) if device is None else device
        self.choice: Choice | None = None
        self._graphs: GraphedSteps | None = None
        if mode == "graphed":
            self._graphs = self._make_graphs()
        elif mode == "auto":
            self.choice = self._candidates()
        self._watchers: list[Watcher] = []
        self._running = threading.Lock()

    @property
    def paths(self) -> dict[str, str]:
        """How each block's step runs, by name: "traced", "batched", "autograd" and the reason."""
        return {
            block.name: "batched" if index in self.stacked else step.path
            for index, (block, step) in enumerate(zip(self.blocks, self.steps, strict=True))
        }

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
        given = list(batches)
        parts = [self.split(x, labels) for x, labels in given]
        if not parts:
            return []
        if not self._running.acquire(blocking=False):
            raise RuntimeError("executor: a step is in progress in another thread")
        recording = torch.is_grad_enabled()
        try:
            results = self._run(given, [pair for part in parts for pair in part])
            self.batches_done += len(parts)
            return results
        except BaseException:
            # An interrupt inside torch.no_grad may leave it switched on.
            torch.set_grad_enabled(recording)
            for step in self.steps:
                step.drop()
            if self.stack is not None:
                self.stack.drop()
            raise
        finally:
            self._running.release()

    def _run(self, batches: list[Batch], parts: list[Batch]) -> list[StepResult]:
        if self.choice is None:
            return self._run_as(self.mode, batches, parts)
        mode = self.choice.mode
        if self.choice.chosen is not None:
            return self._run_as(mode, batches, parts)
        if self.device is not None:
            self.device.synchronize()
        start = time.perf_counter()
        try:
            results = self._run_as(mode, batches, parts)
        except CaptureError as error:
            # Nothing of that step was run, but the batches before it were.
            self.choice.drop(mode, str(error))
            done = len(error.results)
            self.batches_done += done
            try:
                rest = self._run(batches[done:], parts[done * self.micro_batches :])
            finally:
                self.batches_done -= done
            return [*error.results, *rest]
        if self.device is not None:
            self.device.synchronize()
        seconds = time.perf_counter() - start
        self.choice.measured(mode, seconds, sum(len(x) for x, _ in batches))
        return results

    def _run_as(self, mode: str, batches: list[Batch], parts: list[Batch]) -> list[StepResult]:
        if mode == "graphed":
            if self._watchers:
                raise RuntimeError("mode: a graph cannot be watched; expected 'pipelined'")
            if self._graphs is None:
                self._graphs = self._make_graphs()
            return self._graphs.run(batches)
        if self.stack is not None:
            if self._watchers:
                raise RuntimeError("batched_blocks: a batched run cannot be watched")
            run: Run = BatchedRun(self, self.stack, self.stacked.start, parts)
        elif mode == "pipelined" and self.device is not None:
            return StreamRun(self, self.device, parts).execute()
        else:
            run = Run(self, parts, mode)
        run.execute()
        return [run.result(index) for index in range(len(batches))]

    def _make_graphs(self) -> GraphedSteps:
        if self.device is None:
            raise ValueError("mode: graphed needs blocks on a GPU, got blocks on the CPU")
        return GraphedSteps(self, self.device)

    def _candidates(self) -> Choice:
        choice = Choice(["sequential", "pipelined", "graphed"])
        if len(self.blocks) == 1 or self.depth == 1:
            choice.drop("pipelined", "one block in flight")
        try:
            self._graphs = self._make_graphs()
        except ValueError as error:
            choice.drop("graphed", str(error))
        return choice

    @contextmanager
    def watched(self, watcher: WatcherT) -> Iterator[WatcherT]:
        """Lets a watcher see the steps inside: a `Recorder`, an `ActivationMeter`."""
        self._watchers.append(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def watched_steps(self) -> list[LocalStep]:
        """The local steps of a run that begins now, as its watchers see them."""
        steps = self.steps
        for watcher in self._watchers:
            steps = watcher.watch(self.blocks, steps)
        return steps

    def feedback_run(self, parts: int) -> FeedbackRun | None:
        """The feedback lane of a run of so many micro-batches; None: there is no such lane."""
        if self.feedback is None:
            return None
        count, parallel = len(self.blocks), self.micro_batches
        versions = lane_versions(count, self.depth, parallel, parts // parallel, self.slots)
        return FeedbackRun(self.feedback, versions, count)

    def split(self, x: Tensor, labels: Tensor) -> list[Batch]:
        """The micro-batches of a batch; see `split_batch`."""
        return split_batch(x, labels, self.micro_batches)
