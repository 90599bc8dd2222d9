"""A block under DistributedDataParallel is given what it may write to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from tolerance import assert_same_bits
from torch import Tensor, nn
from torch.distributed import ProcessGroup

import bll
from bll.distributed.replicas import ReplicatedBlock
from bll.executor import WrappedBlock, wrapped_blocks


@pytest.fixture
def group() -> Iterator[ProcessGroup]:
    """This process alone: enough for DistributedDataParallel to run the block."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()


def blocks(rule: str, *, in_place: bool) -> list[WrappedBlock]:
    torch.manual_seed(2)
    net = nn.Sequential(
        nn.Linear(6, 8),
        nn.Sequential(nn.ReLU(inplace=in_place), nn.Linear(8, 8)),
        nn.Linear(8, 4),
    )
    example = torch.randn(3, 6)
    return wrapped_blocks(bll.wrap(net, ["0", "1"], rule=rule, num_classes=4, example=example))


def local_step(block: WrappedBlock | ReplicatedBlock, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Output, loss and gradients."""
    output = block.forward(x)
    loss, gradient = block.loss_and_grad(output.detach(), labels)
    output.backward(gradient)
    gradients = [p.grad.clone() for p in block.parameters() if p.grad is not None]
    for parameter in block.parameters():
        parameter.grad = None
    return [output.detach(), loss, *gradients]


@pytest.mark.parametrize("is_last_micro_batch", [False, True])
@pytest.mark.parametrize("rule", ["bll", "sll"])
def test_the_output_handed_on_is_not_overwritten(
    rule: str, is_last_micro_batch: bool, group: ProcessGroup
) -> None:
    """The block before has sent that output on, and its own loss still reads it."""
    labels = torch.tensor([0, 3, 1])
    x = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))
    assert (x < 0).any()
    # "sll" reads the input: it must be what the block before sent, negative numbers and all.
    want = local_step(blocks(rule, in_place=False)[1], x.clone(), labels)
    replicated = ReplicatedBlock(blocks(rule, in_place=True)[1], group)
    assert replicated.parallel is not None
    replicated.is_last_micro_batch = is_last_micro_batch
    given = x.clone()
    found = local_step(replicated, given, labels)
    assert_same_bits(given, x)
    assert len(found) == len(want)
    for mine, theirs in zip(found, want, strict=True):
        assert_same_bits(mine, theirs)


def test_what_writes_nothing_gets_the_very_tensor(group: ProcessGroup) -> None:
    """A copy costs a pass over memory: it is made only where it is needed."""
    replicated = ReplicatedBlock(blocks("bll", in_place=False)[1], group)
    seen: list[int] = []
    first = replicated.block.children[0]
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].data_ptr()))
    x = torch.randn(3, 8)
    replicated.forward(x)
    assert seen == [x.data_ptr()]
