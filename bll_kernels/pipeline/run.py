"""One run of the executor: workers, what is done, what waits between blocks, what went wrong.

A worker takes the next local step of the schedule and starts it as soon as its input is there, the
block is done with the micro-batch before, and the border behind it has a free slot. Schedules are
topological orders, so a worker waits only for steps that others have begun.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Batch, StepResult
from bll_kernels.pipeline.draws import drawing_forward
from bll_kernels.pipeline.faults import note, note_feedback
from bll_kernels.pipeline.feedback import FeedbackRun
from bll_kernels.pipeline.schedule import Kind, pipelined
from bll_kernels.pipeline.worker import Worker

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor


class Run:
    """The local steps of some batches.

    Args:
        executor: Whose blocks are run.
        inputs: Micro-batches.
        mode: "sequential" or "pipelined".
    """

    def __init__(self, executor: Executor, inputs: list[Batch], mode: str) -> None:
        self.executor = executor
        self.mode = mode
        self.inputs = inputs
        self.local_steps = executor.watched_steps()
        self.steps: tuple[tuple[int, int], ...] = ()
        self.taken = 0
        self.changed = threading.Condition()
        self.outputs: dict[tuple[int, int], Tensor] = {}
        self.done: set[tuple[int, int]] = set()
        self.losses: dict[tuple[int, int], Tensor] = {}
        self.error: BaseException | None = None
        self.feedback = executor.feedback_run(len(inputs)) if mode == "pipelined" else None

    def execute(self) -> None:
        """Runs everything, and raises what a block raised first."""
        if self.mode == "sequential":
            before = torch.get_num_threads()
            if before != self.executor.threads:
                torch.set_num_threads(self.executor.threads)
            try:
                with torch.no_grad():
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
        workers = self._workers()
        try:
            if self.feedback is not None:
                self.feedback.begin()
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.ended.wait()
        except BaseException as interrupt:
            self._fail(interrupt)
            for worker in workers:
                worker.wait_after_interrupt()
            # A worker that begins only now finds nothing to do.
            self.taken = len(self.steps)
            self.error = None
            raise
        finally:
            if self.feedback is not None:
                self.feedback.path.end()
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
        finally:
            # Else the error would hold this frame, and this frame the error.
            del error

    def _in_turn(self) -> None:
        """Every micro-batch through all blocks, in the calling thread."""
        try:
            for micro_batch, (x, labels) in enumerate(self.inputs):
                self._through(micro_batch, x, labels)
        except BaseException:
            # Whoever keeps the error keeps this frame, and this run.
            self.outputs.clear()
            raise

    def _through(self, micro_batch: int, x: Tensor, labels: Tensor) -> None:
        """One micro-batch through all blocks."""
        last = len(self.executor.blocks) - 1
        # Watchers see the parts of every block's step.
        if self.local_steps is self.executor.steps:
            known = self.executor.in_turn.step(x, labels, micro_batch)
            if known is not None:
                losses, self.outputs[last, micro_batch] = known
                for index, loss in enumerate(losses):
                    self.losses[index, micro_batch] = loss
                return
        output = x
        try:
            for index in range(last + 1):
                loss, output = self._compute(index, micro_batch, output, labels, _keep)
                self.losses[index, micro_batch] = loss
        except BaseException:
            del output
            raise
        self.outputs[last, micro_batch] = output
        self.executor.in_turn.remember(x, labels)

    def _workers(self) -> list[Worker]:
        def work() -> None:
            torch.set_num_threads(self.executor.threads)
            with torch.no_grad():
                self._work()

        found = [Worker(work, f"bll-worker-{i}") for i in range(self.executor.depth)]
        if self.feedback is not None:
            found.append(Worker(partial(self._feedback_lane, self.feedback), "bll-feedback"))
        return found

    def _feedback_lane(self, feedback: FeedbackRun) -> None:
        """What comes down to the blocks, batch by batch, as soon as its weights are published."""
        torch.set_num_threads(self.executor.threads)
        for batch in range(len(feedback.versions)):

            def may_go_on(batch: int = batch) -> bool:
                return self.error is not None or feedback.is_ready(batch)

            with self.changed:
                self.changed.wait_for(may_go_on)
                if self.error is not None:
                    return
            try:
                with torch.no_grad():
                    feedback.run(batch)
            except BaseException as error:
                note_feedback(error, batch)
                self._fail(error)
                return
            with self.changed:
                for over in feedback.over():
                    feedback.release(over)
                self.changed.notify_all()

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
        batch = micro_batch // self.executor.micro_batches
        if self.feedback is not None and batch >= self.feedback.fed:
            return self.error is not None
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
        def send(output: Tensor) -> None:
            with self.changed:
                if self.error is None:
                    self.outputs[index, micro_batch] = output
                    self.changed.notify_all()

        _, labels = self.inputs[micro_batch]
        loss, _ = self._compute(index, micro_batch, self._input(index, micro_batch), labels, send)
        with self.changed:
            if self.error is not None:
                return  # another block failed: what came back may be no loss, and is not kept
            self.losses[index, micro_batch] = loss
            self.done.add((index, micro_batch))
            if index > 0:
                del self.outputs[index - 1, micro_batch]
            self.changed.notify_all()

    def _input(self, index: int, micro_batch: int) -> Tensor:
        return self.outputs[index - 1, micro_batch] if index else self.inputs[micro_batch][0]

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
        step = self.local_steps[index]
        doing = Kind.FORWARD
        batch, part = divmod(micro_batch, self.executor.micro_batches)
        try:
            if self.feedback is not None and part == 0:
                self.feedback.receive(index, batch)
            if self.executor.draws[index] is False:
                output, saved = step.forward(x, labels)
            else:
                output, saved = drawing_forward(self.executor, step, index, micro_batch, x, labels)
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
            if part + 1 == self.executor.micro_batches:
                step.update()
                if self.feedback is not None:
                    self.feedback.publish(index, batch)
        except BaseException as error:
            note(error, self.executor.blocks[index].name, doing, micro_batch)
            # Whoever keeps the error keeps this frame; it must not keep the activations.
            x = output = saved = None  # type: ignore[assignment]  # noqa: F841
            raise
        return loss, output

    def result(self, batch: int) -> StepResult:
        """Losses and output of one of the batches."""
        count, last = self.executor.micro_batches, len(self.executor.blocks) - 1
        if count == 1:
            of_one = {
                block.name: self.losses[index, batch]
                for index, block in enumerate(self.executor.blocks)
            }
            return StepResult(of_one, self.outputs[last, batch])
        parts = range(batch * count, (batch + 1) * count)
        losses = {
            block.name: torch.stack([self.losses[index, part] for part in parts]).mean()
            for index, block in enumerate(self.executor.blocks)
        }
        return StepResult(losses, torch.cat([self.outputs[last, part] for part in parts]))


@lru_cache(maxsize=64)
def _order(
    blocks: int, depth: int, micro_batches: int, batches: int, slots: int
) -> tuple[tuple[int, int], ...]:
    """(block, micro-batch) of the local steps in the order they are taken."""
    ops = pipelined(blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots)
    return tuple((op.block, op.micro_batch) for op in ops if op.kind is Kind.FORWARD)


def _keep(output: Tensor) -> None:
    """In turn, the output is the next call's argument."""
