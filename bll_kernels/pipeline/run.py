"""One run of the executor: workers, what is done, what waits between blocks, what went wrong.

A worker takes the next local step of the schedule and starts it as soon as its input is there, the
block is done with the micro-batch before, and the border behind it has a free slot. Schedules are
topological orders, so a worker waits only for steps that others have begun.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Batch, StepResult
from bll_kernels.pipeline.schedule import Kind, pipelined
from bll_kernels.pipeline.seeds import forward_seed
from bll_kernels.pipeline.step import LocalStep

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor

# torch's CPU generator is one for the process: a forward that draws from it holds this.
_GENERATOR = threading.Lock()


class Run:
    """The local steps of some batches."""

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
        step = self.executor.steps[index]
        try:
            output, saved = self._forward(step, index, micro_batch, x)
            with self.changed:
                if self.error is not None:
                    return
                self.outputs[index, micro_batch] = output
                self.changed.notify_all()
            doing = Kind.LOSS
            loss, gradient = step.loss(output, labels, saved)
            doing = Kind.BACKWARD
            step.backward(gradient, saved)
            doing = Kind.UPDATE
            if (micro_batch + 1) % self.executor.micro_batches == 0:
                step.update()
        except BaseException as error:
            _note(error, f"in block {block.name!r}, {doing.value} of micro-batch {micro_batch}")
            raise
        with self.changed:
            self.losses[index, micro_batch] = loss
            self.done.add((index, micro_batch))
            if index > 0:
                del self.outputs[index - 1, micro_batch]
            self.changed.notify_all()

    def _forward(
        self, step: LocalStep, index: int, micro_batch: int, x: Tensor
    ) -> tuple[Tensor, Any]:
        if self.executor.draws[index] is False:
            return step.forward(x)
        count = len(self.executor.blocks)
        done = self.executor.batches_done * self.executor.micro_batches
        with _GENERATOR, torch.random.fork_rng(devices=[]):
            torch.manual_seed(forward_seed(self.executor.seed, done + micro_batch, count, index))
            before = torch.get_rng_state()
            found = step.forward(x)
            if self.executor.draws[index] is None:
                self.executor.draws[index] = not torch.equal(before, torch.get_rng_state())
            return found

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
