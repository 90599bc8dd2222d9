"""Runs the local steps of blocks in the order of a schedule, on worker threads of the CPU.

A worker takes the next local step of the schedule and starts it as soon as its input is there, the
block is done with the micro-batch before, and the border behind it has a free slot. Schedules are
topological orders, so a worker waits only for steps that others have begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Block, Certificate, certify
from bll_kernels.pipeline.schedule import Kind, pipelined

MODES: Final = ("sequential", "pipelined")
Batch = tuple[Tensor, Tensor]

# torch's CPU generator is one for the process: a forward that draws from it holds this.
_GENERATOR = threading.Lock()


class Updater(Protocol):
    """What updates one block: a `torch.optim` optimiser, or a part of one."""

    def step(self) -> Any:
        """Update the block from its parameters' gradients."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop those gradients."""


OptimizerFactory = Callable[[Sequence[Tensor]], Updater]


@dataclass(frozen=True)
class StepResult:
    """What a batch gave.

    Attributes:
        losses: Local loss of every block, by name, a mean over the batch: 0-dim, detached.
        output: Output of the last block, [batch, ...], detached.
    """

    losses: dict[str, Tensor]
    output: Tensor


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
        self.batches_done = 0
        self.draws: list[bool | None] = [None] * len(names)
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
            run = _Run(self, [pair for part in parts for pair in part])
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

    def _split(self, x: Tensor, labels: Tensor) -> list[Batch]:
        size, count = len(x), self.micro_batches
        if len(labels) != size:
            raise ValueError(f"labels: expected {size}, one per sample, got {len(labels)}")
        if size == 0 or size % count:
            raise ValueError(f"x: expected a batch that divides into {count} parts, got {size}")
        return list(zip(x.chunk(count), labels.chunk(count), strict=True))


class _Run:
    """The local steps of some batches: what is done, what waits between blocks, what went wrong."""

    def __init__(self, executor: Executor, inputs: list[Batch]) -> None:
        self.executor = executor
        self.inputs = inputs
        count = executor.micro_batches
        ops = pipelined(
            len(executor.blocks),
            depth=executor.depth,
            micro_batches=count,
            batches=len(inputs) // count,
            slots=executor.slots,
        )
        self.steps = [(op.block, op.micro_batch) for op in ops if op.kind is Kind.FORWARD]
        self.taken = 0
        self.changed = threading.Condition()
        self.outputs: dict[tuple[int, int], Tensor] = {}
        self.done: set[tuple[int, int]] = set()
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Runs everything, and raises what a block raised first."""
        workers = [] if self.executor.mode == "sequential" else self._start_workers()
        try:
            if not workers:
                before = torch.get_num_threads()
                torch.set_num_threads(self.executor.threads)
                try:
                    self._work()
                finally:
                    torch.set_num_threads(before)
            for worker in workers:
                worker.join()
        except BaseException as interrupt:
            self._fail(interrupt)
            for worker in workers:
                worker.join()
            raise
        if self.error is not None:
            raise self.error

    def _start_workers(self) -> list[threading.Thread]:
        def work() -> None:
            torch.set_num_threads(self.executor.threads)
            self._work()

        count = self.executor.depth
        workers = [threading.Thread(target=work, name=f"bll-worker-{i}") for i in range(count)]
        for worker in workers:
            worker.start()
        return workers

    def _work(self) -> None:
        while True:
            with self.changed:
                if self.error is not None or self.taken == len(self.steps):
                    return
                block, micro_batch = self.steps[self.taken]
                self.taken += 1
                self.changed.wait_for(partial(self._ready, block, micro_batch))
                if self.error is not None:
                    return
            try:
                self._local_step(block, micro_batch)
            except BaseException as error:
                self._fail(error)
                return

    def _ready(self, block: int, micro_batch: int) -> bool:
        last = len(self.executor.blocks) - 1
        freed = micro_batch - self.executor.slots
        return self.error is not None or (
            (block == 0 or (block - 1, micro_batch) in self.outputs)
            and (micro_batch == 0 or (block, micro_batch - 1) in self.done)
            and (block == last or freed < 0 or (block + 1, freed) in self.done)
        )

    def _fail(self, error: BaseException) -> None:
        with self.changed:
            if self.error is None:
                self.error = error
            self.outputs.clear()
            self.changed.notify_all()

    def _local_step(self, index: int, micro_batch: int) -> None:
        block = self.executor.blocks[index]
        x, labels = self.inputs[micro_batch]
        if index > 0:
            x = self.outputs[index - 1, micro_batch]
        doing = Kind.FORWARD
        try:
            with torch.enable_grad():
                output = self._forward(block, index, micro_batch, x.detach())
            sent = output.detach()
            with self.changed:
                if self.error is not None:
                    return
                self.outputs[index, micro_batch] = sent
                self.changed.notify_all()
            doing = Kind.LOSS
            loss, gradient = block.loss_and_grad(sent, labels)
            doing = Kind.BACKWARD
            if output.requires_grad:
                output.backward(gradient)
            doing = Kind.UPDATE
            if (micro_batch + 1) % self.executor.micro_batches == 0:
                self._update(index)
        except BaseException as error:
            _note(error, f"in block {block.name!r}, {doing.value} of micro-batch {micro_batch}")
            raise
        with self.changed:
            self.losses[index, micro_batch] = loss.detach()
            self.done.add((index, micro_batch))
            if index > 0:
                del self.outputs[index - 1, micro_batch]
            self.changed.notify_all()

    def _forward(self, block: Block, index: int, micro_batch: int, x: Tensor) -> Tensor:
        if self.executor.draws[index] is False:
            return block.forward(x)
        count = len(self.executor.blocks)
        done = self.executor.batches_done * self.executor.micro_batches
        with _GENERATOR, torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.executor.seed * 1_000_003 + done + micro_batch) * count + index)
            before = torch.get_rng_state()
            output = block.forward(x)
            if self.executor.draws[index] is None:
                self.executor.draws[index] = not torch.equal(before, torch.get_rng_state())
            return output

    def _update(self, index: int) -> None:
        optimizer, count = self.executor.optimizers[index], self.executor.micro_batches
        if count > 1:
            # Every part's gradient is a mean over the part.
            for parameter in self.executor.blocks[index].parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(count)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def result(self, batch: int) -> StepResult:
        """Losses and output of one of the batches."""
        count, last = self.executor.micro_batches, len(self.executor.blocks) - 1
        parts = range(batch * count, (batch + 1) * count)
        losses = {
            block.name: torch.stack([self.losses[index, part] for part in parts]).mean()
            for index, block in enumerate(self.executor.blocks)
        }
        return StepResult(losses, torch.cat([self.outputs[last, part] for part in parts]))


def _note(error: BaseException, text: str) -> None:
    notes = getattr(error, "__notes__", None)
    if notes is None:
        # What BaseException.add_note does from Python 3.11 on.
        error.__notes__ = [text]  # type: ignore[attr-defined]
    else:
        notes.append(text)
