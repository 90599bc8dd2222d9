"""One run of the executor on a device with lanes: one driver, events, no waiting on the host.

Block k works in lane k modulo the depth, in the order of the schedule; with all blocks in flight
every block has a lane. Memory of a block is made and given back in its lane. Between lanes there
are these orders and no others:

* a forward begins after the forward whose output it reads;
* a forward begins after the local step that read the slot it writes to;
* every lane begins after the caller's work so far, and the caller goes on after every lane.

Where feedback has a lane of its own, there are three more:

* the feedback of a batch begins after the updates whose weights it reads were published;
* a block begins a batch after that batch's feedback;
* memory of what came down is given back in the feedback lane after every block has received it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Batch, StepResult
from bll_kernels.pipeline.device import Device, Lane, Mark
from bll_kernels.pipeline.draws import drawing_forward
from bll_kernels.pipeline.faults import note, note_feedback
from bll_kernels.pipeline.feedback import FeedbackRun
from bll_kernels.pipeline.schedule import Kind, pipelined

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor

Place = tuple[int, int]


class StreamRun:
    """The local steps of some batches.

    Args:
        executor: Whose blocks are run.
        device: Where.
        inputs: Micro-batches.
        streams: In a run that is captured, of the random numbers of blocks that draw some, by block
            and micro-batch.
    """

    def __init__(
        self,
        executor: Executor,
        device: Device,
        inputs: list[Batch],
        streams: Mapping[Place, torch.Generator] | None = None,
    ) -> None:
        self.executor = executor
        self.device = device
        self.inputs = inputs
        self.streams = {} if streams is None else streams
        self.batches = len(inputs) // executor.micro_batches
        blocks = len(executor.blocks)
        ops = pipelined(
            blocks,
            depth=executor.depth,
            micro_batches=executor.micro_batches,
            batches=self.batches,
            slots=executor.slots,
        )
        self.order = [(op.block, op.micro_batch) for op in ops if op.kind is Kind.FORWARD]
        self.lanes = [device.lane(block % executor.depth) for block in range(blocks)]
        self.local_steps = executor.watched_steps()
        self.rings: list[list[Tensor | None]] = [[None] * executor.slots for _ in range(blocks - 1)]
        self.last_outputs: dict[int, Tensor] = {}
        self.saved: list[Any] = [None] * blocks
        self.losses: dict[Place, Tensor] = {}
        self.sent: dict[Place, Mark] = {}
        self.done: dict[Place, Mark] = {}
        self.results: list[StepResult] = []
        self.feedback = executor.feedback_run(len(inputs))
        self.feedback_lane = None if self.feedback is None else device.lane(executor.depth)
        self.first: dict[int, Mark] = {}
        self.fed: dict[int, Mark] = {}
        self.received: dict[Place, Mark] = {}

    def execute(self) -> list[StepResult]:
        """Runs everything; the results may be used in the caller's lane.

        Raises:
            Exception: what a block raised first, noted; nothing is under way then.
        """
        try:
            if self.feedback is not None:
                # In the caller's lane, as everything before the run.
                self.device.launch(self.device.caller(), self.feedback.path.begin)
            self.issue()
            self.device.settle()
        except BaseException:
            # References are about to be dropped out of turn: no lane may still be at work.
            self.device.synchronize()
            raise
        finally:
            if self.feedback is not None:
                self.feedback.path.end()
        return self.results

    def issue(self) -> None:
        """Launches everything, the results included, in the order of the schedule."""
        begin = self.device.record(self.device.caller())
        lanes = [*self.lanes, *([] if self.feedback_lane is None else [self.feedback_lane])]
        for lane in {id(lane): lane for lane in lanes}.values():
            self._await_caller(lane, begin)
        if self.feedback is not None:
            self._issue_first_weights(self.feedback)
        for block, micro_batch in self.order:
            if self.feedback is not None and micro_batch % self.executor.micro_batches == 0:
                self._issue_feedback(self.feedback, block, micro_batch)
            self._issue_local_step(block, micro_batch)
        caller = self.device.caller()
        last = len(self.inputs) - 1
        for block in range(len(self.lanes)):
            self._join(caller, self.done[block, last])
        self.device.launch(caller, self._collect)

    def _issue_first_weights(self, feedback: FeedbackRun) -> None:
        """The weights before the run are published as later ones are: each in its block's lane."""
        for owner in feedback.owners:
            lane = self.lanes[owner]
            self.device.launch(lane, partial(feedback.publish_first, owner))
            self.first[owner] = self.device.record(lane)

    def _issue_feedback(self, feedback: FeedbackRun, block: int, micro_batch: int) -> None:
        """A block is about to begin a batch; with the first block the batch's feedback is due."""
        count = self.executor.micro_batches
        batch = micro_batch // count
        if block == 0:
            for owner in feedback.owners:
                version = feedback.versions[batch][owner]
                update = (owner, version * count - 1)
                self._await_published(self.done[update] if version else self.first[owner])
            over = self._received_by_all()
            for before in over:
                for reader in range(len(self.lanes)):
                    self._await_received(self.received.pop((reader, before)))
            self.device.launch(self.feedback_lane, partial(self._feed, feedback, batch, over))
            self.fed[batch] = self.device.record(self.feedback_lane)
        lane = self.lanes[block]
        self._await_feedback(lane, self.fed[batch])
        self.device.launch(lane, partial(self._receive, feedback, block, batch))
        self.received[block, batch] = self.device.record(lane)

    def _received_by_all(self) -> list[int]:
        """Batches whose feedback every block has been told to receive."""
        counts = Counter(batch for _, batch in self.received)
        return [batch for batch, count in counts.items() if count == len(self.lanes)]

    def _feed(self, feedback: FeedbackRun, batch: int, over: list[int]) -> None:
        for before in over:
            for tensor in feedback.release(before):
                self.device.retire(tensor)
        try:
            feedback.run(batch)
        except BaseException as error:
            note_feedback(error, batch)
            raise

    def _receive(self, feedback: FeedbackRun, block: int, batch: int) -> None:
        for tensor in feedback.receive(block, batch):
            self.device.retire(tensor)

    def _await_published(self, mark: Mark) -> None:
        self.device.wait(self.feedback_lane, mark)

    def _await_received(self, mark: Mark) -> None:
        self.device.wait(self.feedback_lane, mark)

    def _await_feedback(self, lane: Lane, mark: Mark) -> None:
        self.device.wait(lane, mark)

    def _issue_local_step(self, block: int, micro_batch: int) -> None:
        lane = self.lanes[block]
        if block > 0:
            self._await_input(lane, self.sent[block - 1, micro_batch])
        freed = micro_batch - self.executor.slots
        if block < len(self.rings) and freed >= 0:
            self._await_slot(lane, self.done[block + 1, freed])
            self.device.launch(lane, partial(self._retire, block, freed))
        self._launch(block, micro_batch, Kind.FORWARD, self._forward)
        self.sent[block, micro_batch] = self.device.record(lane)
        self._launch(block, micro_batch, Kind.LOSS, self._loss)
        self._launch(block, micro_batch, Kind.BACKWARD, self._backward)
        if (micro_batch + 1) % self.executor.micro_batches == 0:
            self._launch(block, micro_batch, Kind.UPDATE, self._update)
        self.done[block, micro_batch] = self.device.record(lane)

    def _await_caller(self, lane: Lane, mark: Mark) -> None:
        self.device.wait(lane, mark)

    def _await_input(self, lane: Lane, mark: Mark) -> None:
        self.device.wait(lane, mark)

    def _await_slot(self, lane: Lane, mark: Mark) -> None:
        self.device.wait(lane, mark)

    def _join(self, caller: Lane, mark: Mark) -> None:
        self.device.wait(caller, mark)

    def _launch(self, block: int, micro_batch: int, kind: Kind, part: Any) -> None:
        def work() -> None:
            try:
                part(block, micro_batch)
            except BaseException as error:
                note(error, self.executor.blocks[block].name, kind, micro_batch)
                raise

        self.device.launch(self.lanes[block], work)

    def _retire(self, block: int, micro_batch: int) -> None:
        slot = micro_batch % self.executor.slots
        tensor, self.rings[block][slot] = self.rings[block][slot], None
        if tensor is not None:
            self.device.retire(tensor)

    def _forward(self, block: int, micro_batch: int) -> None:
        x: Tensor | None = self.inputs[micro_batch][0]
        slot = micro_batch % self.executor.slots
        if block > 0:
            x = self.rings[block - 1][slot]
        if x is None:
            raise RuntimeError("the slot of the input is empty")
        step = self.local_steps[block]
        labels = self.inputs[micro_batch][1]
        if self.executor.draws[block] is False:
            output, saved = step.forward(x, labels)
        elif (block, micro_batch) in self.streams:
            with self.device.drawing(self.streams[block, micro_batch]):
                output, saved = step.forward(x, labels)
        else:
            output, saved = drawing_forward(self.executor, step, block, micro_batch, x, labels)
        if block < len(self.rings):
            self.rings[block][slot] = output
        else:
            self.last_outputs[micro_batch] = output
        self.saved[block] = saved

    def _loss(self, block: int, micro_batch: int) -> None:
        found = self.local_steps[block].loss(self.saved[block])
        self.losses[block, micro_batch], self.saved[block] = found

    def _backward(self, block: int, micro_batch: int) -> None:
        saved, self.saved[block] = self.saved[block], None
        self.local_steps[block].backward(saved)

    def _update(self, block: int, micro_batch: int) -> None:
        self.local_steps[block].update()
        if self.feedback is not None:
            self.feedback.publish(block, micro_batch // self.executor.micro_batches)

    def _collect(self) -> None:
        count = self.executor.micro_batches
        self.results = []
        for batch in range(self.batches):
            parts = range(batch * count, (batch + 1) * count)
            losses = {
                block.name: torch.stack([self.losses[index, part] for part in parts]).mean()
                for index, block in enumerate(self.executor.blocks)
            }
            output = torch.cat([self.last_outputs[part] for part in parts])
            self.results.append(StepResult(losses, output))
