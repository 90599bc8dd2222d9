"""One run of the executor: workers, what is done, what waits between blocks, what went wrong.

A worker takes the next local step of the schedule and starts it as soon as its input is there, the
block is done with the micro-batch before, and the border behind it has a free slot. Schedules are
topological orders, so a worker waits only for steps that others have begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Batch, StepResult
from bll_kernels.pipeline.schedule import Kind, pipelined
from bll_kernels.pipeline.step import GENERATOR

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor


class Run:
    """The local steps of some batches."""

    def __init__(self, executor: Executor, inputs: list[Batch]) -> None:
        self.executor = executor
        self.inputs = inputs
        self.steps: tuple[tuple[int, int], ...] = ()
        self.taken = 0
        self.changed = threading.Condition()
        self.outputs: dict[tuple[int, int], Tensor] = {}
        self.done: set[tuple[int, int]] = set()
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.error: BaseException | None = None

    def execute(self) -> None:
        """Runs everything, and raises what a block raised first."""
        if self.executor.mode == "sequential":
            before = torch.get_num_threads()
            if before != self.executor.threads:
                torch.set_num_threads(self.executor.threads)
            try:
                self._in_turn()
            finally:
                if before != self.executor.threads:
                    torch.set_num_threads(before)
            return
        count = self.executor.micro_batches
        self.steps = _order(
            len(self.executor.blocks),
            self.executor.depth,
            count,
            len(self.inputs) // count,
            self.executor.slots,
        )
        workers = self._start_workers()
        try:
            for worker in workers:
                worker.join()
        except BaseException as interrupt:
            self._fail(interrupt)
            for worker in workers:
                worker.join()
            raise
        if self.error is not None:
            raise self.error

    def _in_turn(self) -> None:
        """Every micro-batch through all blocks, in the calling thread."""
        last = len(self.executor.blocks) - 1
        for micro_batch, (x, labels) in enumerate(self.inputs):
            for index in range(last + 1):
                loss, x = self._compute(index, micro_batch, x, labels, _keep)
                self.losses[index, micro_batch] = loss
            self.outputs[last, micro_batch] = x

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
        x, labels = self.inputs[micro_batch]
        if index > 0:
            x = self.outputs[index - 1, micro_batch]

        def send(output: Tensor) -> None:
            with self.changed:
                if self.error is None:
                    self.outputs[index, micro_batch] = output
                    self.changed.notify_all()

        loss, _ = self._compute(index, micro_batch, x, labels, send)
        with self.changed:
            self.losses[index, micro_batch] = loss
            self.done.add((index, micro_batch))
            if index > 0 and self.error is None:
                del self.outputs[index - 1, micro_batch]
            self.changed.notify_all()

    def _compute(
        self,
        index: int,
        micro_batch: int,
        x: Tensor,
        labels: Tensor,
        send: Callable[[Tensor], None],
    ) -> tuple[Tensor, Tensor]:
        """One local step; the output is sent before the block's own loss is taken.

        Returns:
            Loss and output.
        """
        step = self.executor.steps[index]
        doing = Kind.FORWARD
        try:
            if self.executor.draws[index] is False:
                output, saved = step.forward(x, labels)
            else:
                output, saved = self._drawing_forward(index, micro_batch, x, labels)
            send(output)
            if self.error is not None:
                # Another block has failed; the caller raises that.
                return output, output
            doing = Kind.LOSS
            loss, saved = step.loss(saved)
            doing = Kind.BACKWARD
            step.backward(saved)
            del saved
            doing = Kind.UPDATE
            if (micro_batch + 1) % self.executor.micro_batches == 0:
                step.update()
        except BaseException as error:
            name = self.executor.blocks[index].name
            _note(error, f"in block {name!r}, {doing.value} of micro-batch {micro_batch}")
            raise
        return loss, output

    def _drawing_forward(
        self, index: int, micro_batch: int, x: Tensor, labels: Tensor
    ) -> tuple[Tensor, Any]:
        """A forward that draws random numbers, or may: from a seed of block and micro-batch."""
        count = len(self.executor.blocks)
        done = self.executor.batches_done * self.executor.micro_batches
        with GENERATOR, torch.random.fork_rng(devices=[]):
            torch.manual_seed((self.executor.seed * 1_000_003 + done + micro_batch) * count + index)
            before = torch.get_rng_state()
            found = self.executor.steps[index].forward(x, labels)
            if self.executor.draws[index] is None:
                self.executor.draws[index] = not torch.equal(before, torch.get_rng_state())
            return found

    def result(self, batch: int) -> StepResult:
        """Losses and output of one of the batches."""
        count, last = self.executor.micro_batches, len(self.executor.blocks) - 1
        parts = range(batch * count, (batch + 1) * count)
        losses = {
            block.name: _mean([self.losses[index, part] for part in parts])
            for index, block in enumerate(self.executor.blocks)
        }
        outputs = [self.outputs[last, part] for part in parts]
        return StepResult(losses, outputs[0] if count == 1 else torch.cat(outputs))


@lru_cache(maxsize=64)
def _order(
    blocks: int, depth: int, micro_batches: int, batches: int, slots: int
) -> tuple[tuple[int, int], ...]:
    """(block, micro-batch) of the local steps in the order they are taken."""
    ops = pipelined(blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots)
    return tuple((op.block, op.micro_batch) for op in ops if op.kind is Kind.FORWARD)


def _keep(output: Tensor) -> None:
    """In turn, the output is the next call's argument."""


def _mean(losses: list[Tensor]) -> Tensor:
    return losses[0] if len(losses) == 1 else torch.stack(losses).mean()


def _note(error: BaseException, text: str) -> None:
    notes = getattr(error, "__notes__", None)
    if notes is None:
        # What BaseException.add_note does from Python 3.11 on.
        error.__notes__ = [text]  # type: ignore[attr-defined]
    else:
        notes.append(text)
