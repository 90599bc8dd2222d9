"""What one rank computes: forward of its blocks, and their learning once the output is sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bll.distributed.replicas import ReplicatedBlock
from bll.distributed.shapes import memory_order
from bll_kernels.pipeline.seeds import forward_seed, gpus_of, random_states, seeded
from bll_kernels.pipeline.step import LocalStep


class BlockError(Exception):
    """Carries what a block raised past the pipelining engine, which would rename it."""


class StageWork(nn.Module):
    """The blocks of one rank; `forward` is what the pipelining engine calls.

    Tensors cross a border in memory order, since what is sent must be contiguous.

    Args:
        blocks: This rank's blocks, in order.
        steps: Their local steps.
        first: Index of the first of them in the network.
        total: Blocks of the network.
        inputs: Input of the first block for one micro-batch, on the meta device.
        output: Output of the last one, alike.
        seed: Of the random numbers drawn in forward passes.
    """

    def __init__(
        self,
        blocks: Sequence[ReplicatedBlock],
        steps: Sequence[LocalStep],
        *,
        first: int,
        total: int,
        inputs: Tensor,
        output: Tensor,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.own = list(blocks)
        self.steps = list(steps)
        self.first = first
        self.total = total
        self.seed = seed
        self.device = device
        self.order_in = memory_order(inputs)
        self.order_out = memory_order(output)
        self.draws: list[bool | None] = [None] * len(self.own)
        self.micro_batch = 0
        self.left = 0
        self.labels: Sequence[Tensor] = ()
        self.losses: list[list[Tensor]] = [[] for _ in self.own]
        self.error: BaseException | None = None
        self.where = ""
        self._saved: list[tuple[Tensor, Any]] = []

    def wire_input(self, inputs: Tensor) -> Tensor:
        """What is received for an input."""
        return inputs if self.first == 0 else inputs.permute(self.order_in)

    def wire_output(self, output: Tensor) -> Tensor:
        """What is sent for an output."""
        ends = self.first + len(self.own) == self.total
        return output if ends else output.permute(self.order_out)

    def begin(self, micro_batch: int, labels: Sequence[Tensor]) -> None:
        """Start a batch.

        Args:
            micro_batch: Number of its first micro-batch in the run.
            labels: Of each of its micro-batches.
        """
        self.micro_batch = micro_batch
        self.left = len(labels)
        self.labels = labels
        self.losses = [[] for _ in self.own]
        self._saved = []

    def forward(self, x: Tensor) -> Tensor:
        """Run the blocks on one micro-batch and keep what their learning needs.

        Raises:
            BlockError: A block raised; `error` is what, `where` says in which.
        """
        if self.first > 0:
            inverse = [self.order_in.index(dim) for dim in range(x.dim())]
            x = x.permute(inverse)
        self._saved = []
        for place, block in enumerate(self.own):
            block.is_last_micro_batch = self.left == 1
            try:
                output, saved = self._forward(place, x, self.labels[-self.left])
            except Exception as error:
                self._fail(error, block, "forward")
                raise BlockError(self.where) from error
            self._saved.append((output, saved))
            x = output
        return self.wire_output(x).contiguous()

    def learn(self) -> None:
        """Take losses and backwards of the micro-batch whose forward ran last.

        After the last one of a batch the blocks are updated.

        Raises:
            BlockError: As in `forward`.
        """
        for place, block in enumerate(self.own):
            step = self.steps[place]
            output, saved = self._saved[place]
            doing = "loss"
            try:
                loss, saved = step.loss(saved)
                doing = "backward"
                step.backward(saved)
                if self.left == 1:
                    doing = "update"
                    step.update()
            except Exception as error:
                self._fail(error, block, doing)
                raise BlockError(self.where) from error
            self.losses[place].append(loss)
            # Of a block done with the micro-batch nothing stays.
            self._saved[place] = (output, None)
        self._saved = []
        self.micro_batch += 1
        self.left -= 1

    def _fail(self, error: BaseException, block: ReplicatedBlock, doing: str) -> None:
        self.error = error
        self.where = f"in block {block.name!r}, {doing} of micro-batch {self.micro_batch}"

    def _forward(self, place: int, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """One block's forward, with the random numbers of its block and micro-batch."""
        step = self.steps[place]
        if self.draws[place] is False:
            return step.forward(x, labels)
        gpus = gpus_of(x)
        index = self.first + place
        with seeded(forward_seed(self.seed, self.micro_batch, self.total, index), gpus):
            before = random_states(gpus)
            found = step.forward(x, labels)
            if self.draws[place] is None:
                after = random_states(gpus)
                self.draws[place] = not all(map(torch.equal, before, after))
            return found
