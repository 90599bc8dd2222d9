"""The schedule of a local stage on torch's pipelining engine: forward, send, learn; no flush.

`PipelineScheduleSingle` is the engine's base for schedules of one's own. Of its two halves only the
forward one is used: nothing comes back from the next stage.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from bll.distributed.work import StageWork


class LostPeer(Exception):
    """A wait for another rank failed.

    Attributes:
        member: Its place in the pipeline.
    """

    def __init__(self, member: int) -> None:
        super().__init__(member)
        self.member = member


@dataclass
class Traffic:
    """What a rank has sent and waited for so far.

    Attributes:
        bytes_sent: Activations.
        seconds_waiting: In waits for other ranks.
    """

    bytes_sent: int = 0
    seconds_waiting: float = 0.0


class Outbox:
    """Outputs on their way to the next rank; kept from batch to batch, since nothing is flushed.

    Args:
        slots: How many may be on their way before a forward has to wait.
        member: Place of the next rank.
        traffic: Where bytes and waits are counted.
    """

    def __init__(self, slots: int, member: int, traffic: Traffic) -> None:
        self.slots = slots
        self.member = member
        self.traffic = traffic
        self._sent: deque[tuple[dist.Work, Tensor]] = deque()

    def add(self, work: dist.Work, tensor: Tensor) -> None:
        """Keep an output until it has been taken."""
        self._sent.append((work, tensor))
        self.traffic.bytes_sent += tensor.numel() * tensor.element_size()

    def make_room(self) -> None:
        """Wait until another output may be sent."""
        while len(self._sent) >= self.slots:
            self._wait()

    def drain(self) -> None:
        """Wait until everything has been taken."""
        while self._sent:
            self._wait()

    def _wait(self) -> None:
        work, _ = self._sent.popleft()
        wait(work, self.member, self.traffic)


def wait(work: dist.Work, member: int, traffic: Traffic) -> None:
    """Wait for a transfer with another rank.

    Raises:
        LostPeer: It failed; the cause is the backend's error.
    """
    started = time.perf_counter()
    try:
        work.wait()
    except RuntimeError as error:
        raise LostPeer(member) from error
    finally:
        traffic.seconds_waiting += time.perf_counter() - started


class LocalSchedule(PipelineScheduleSingle):
    """Every micro-batch: forward, send the output, then loss, backward and update on the rank.

    The next input is asked for before the forward of this one, so that it travels meanwhile.

    Args:
        stage: With static shapes: without them the engine would run the blocks once more, on
            memory nobody has written.
        work: The stage's module.
        micro_batches: Parts of a batch.
        outbox: Outputs on their way.
    """

    def __init__(
        self, stage: PipelineStage, work: StageWork, micro_batches: int, outbox: Outbox
    ) -> None:
        # scale_grads would divide gradients by the number of micro-batches once more.
        super().__init__(stage, micro_batches, scale_grads=False)
        self.work = work
        self.outbox = outbox
        self.traffic = outbox.traffic

    def _step_microbatches(
        self,
        arg_mbs: list[Any] | None = None,
        kwarg_mbs: list[Any] | None = None,
        target_mbs: list[Any] | None = None,
        losses: list[Any] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
    ) -> None:
        arg_mbs, kwarg_mbs = self._check_inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
        if target_mbs is None:
            raise ValueError("target: expected the labels, got None")
        try:
            self._initialize_stage(arg_mbs[0], kwarg_mbs[0])
        except RuntimeError as error:
            raise LostPeer(self._stage.stage_index) from error
        count = self._n_microbatches
        coming = self._ask(0)
        for index in range(count):
            for work in coming:
                wait(work, self._stage.stage_index - 1, self.traffic)
            coming = self._ask(index + 1) if index + 1 < count else []
            self.outbox.make_room()
            self._stage.forward_one_chunk(index, arg_mbs[index], kwarg_mbs[index])
            self._send(index)
            self.work.learn()

    def _ask(self, index: int) -> list[dist.Work]:
        try:
            works = [
                dist.irecv(op.tensor, group=op.group, group_src=op.group_peer)
                for op in self._stage.get_fwd_recv_ops(index)
            ]
        except RuntimeError as error:
            raise LostPeer(self._stage.stage_index - 1) from error
        return [work for work in works if work is not None]

    def _send(self, index: int) -> None:
        for op in self._stage.get_fwd_send_ops(index):
            try:
                work = dist.isend(op.tensor, group=op.group, group_dst=op.group_peer)
            except RuntimeError as error:
                raise LostPeer(self._stage.stage_index + 1) from error
            if work is not None:
                self.outbox.add(work, op.tensor)
