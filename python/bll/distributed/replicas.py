"""A block whose gradients are means over replicas, by DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn.parallel import DistributedDataParallel

from bll.distributed.shapes import Chain
from bll.executor import WrappedBlock


class ReplicatedBlock:
    """A block, whose modules are under DistributedDataParallel where it has replicas.

    Gradients travel with the backward of a batch's last micro-batch, bucket by bucket; those of
    the message, which the loss itself trains, as soon as that loss is taken. Each replica keeps
    its own running statistics.

    Args:
        block: The block.
        group: Its replicas, or None.
    """

    def __init__(self, block: WrappedBlock, group: ProcessGroup | None) -> None:
        self.block = block
        self.group = group
        self.name = block.name
        self.reads = block.reads
        self.is_last_micro_batch = False
        trained = {id(p) for child in block.children for p in child.parameters() if p.requires_grad}
        self.message = [p for p in block.parameters() if id(p) not in trained]
        self.parallel = None
        if group is not None and trained:
            self.parallel = DistributedDataParallel(
                Chain(block.children), process_group=group, broadcast_buffers=False
            )
        if group is not None:
            for parameter in self.message:
                dist.broadcast(parameter.data, group=group, group_src=0)

    def parameters(self) -> Sequence[Tensor]:
        """The block's."""
        return self.block.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """The block's."""
        if self.parallel is None:
            return self.block.forward(x)
        given = self.block.take_input(x)
        with nullcontext() if self.is_last_micro_batch else self.parallel.no_sync():
            output: Tensor = self.parallel(given)
        return output

    def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The block's; the message's gradient is averaged after the last micro-batch."""
        found = self.block.loss_and_grad(output, labels)
        if self.group is not None and self.is_last_micro_batch:
            for parameter in self.message:
                if parameter.grad is not None:
                    dist.all_reduce(parameter.grad, group=self.group)
                    parameter.grad.div_(dist.get_world_size(self.group))
        return found
