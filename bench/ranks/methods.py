"""The methods under comparison, each as a step of one rank."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import bll
import bll.distributed
from bll_kernels.optim import BlockAdam

CLASSES: Final = 10
#: Seconds after which the ranks are killed.
LIMIT: Final = 1500
METHODS: Final = ("local", "gpipe", "1f1b", "zero-bubble", "ddp")


@dataclass(frozen=True)
class Setting:
    """What is trained: on each rank `layers` linear layers with ReLU."""

    ranks: int = 2
    layers: int = 2
    width: int = 512
    batch: int = 512
    micro_batches: int = 8
    steps: int = 10
    rounds: int = 5


class CountingStage(PipelineStage):
    """Counts the bytes it sends."""

    bytes_sent = 0

    def _counted(self, ops: list[dist.P2POp]) -> list[dist.P2POp]:
        self.bytes_sent += sum(op.tensor.numel() * op.tensor.element_size() for op in ops)
        return ops

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Activations to the next rank."""
        return self._counted(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Gradients to the rank before."""
        return self._counted(super().get_bwd_send_ops(bwd_chunk_id))


def parts(setting: Setting) -> list[nn.Sequential]:
    """The layers of every rank, from a fixed seed."""
    torch.manual_seed(0)
    found = []
    for rank in range(setting.ranks):
        layers: list[nn.Module] = []
        for _ in range(setting.layers):
            layers += [nn.Linear(setting.width, setting.width), nn.ReLU()]
        if rank == setting.ranks - 1:
            layers.append(nn.Linear(setting.width, CLASSES))
        found.append(nn.Sequential(*layers))
    return found


class Runner:
    """One method on this rank: `step` trains a batch and returns when this rank may go on."""

    def __init__(
        self, step: Callable[[], Any], sent: Callable[[], int], end: Callable[[], Any]
    ) -> None:
        self.step, self.sent, self.end = step, sent, end


def make(method: str, setting: Setting, rank: int) -> Runner:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(setting.batch, setting.width, generator=generator)
    labels = torch.randint(0, CLASSES, (setting.batch,), generator=generator)
    if method == "local":
        return _local(setting, x, labels)
    if method == "ddp":
        return _ddp(setting, rank, x, labels)
    return _pipeline(method, setting, rank, x, labels)


def _local(setting: Setting, x: Tensor, labels: Tensor) -> Runner:
    model = nn.Sequential(*parts(setting))
    names = [str(rank) for rank in range(setting.ranks - 1)]
    model = bll.wrap(model, names, num_classes=CLASSES, example=x[:2])
    stage = bll.distributed.stage(
        model, BlockAdam, example=x, micro_batches=setting.micro_batches, timeout=LIMIT
    )
    return Runner(lambda: stage.step(x, labels), lambda: stage.traffic.bytes_sent, stage.close)


def _pipeline(method: str, setting: Setting, rank: int, x: Tensor, labels: Tensor) -> Runner:
    part = parts(setting)[rank]
    optimizer = BlockAdam(part.parameters())
    size = setting.batch // setting.micro_batches
    # What crosses a border must say that it wants a gradient, or none is sent back.
    inside = torch.empty(size, setting.width, device="meta").requires_grad_(rank > 0)
    last = rank == setting.ranks - 1
    out = torch.empty(size, CLASSES if last else setting.width, device="meta").requires_grad_()
    stage = CountingStage(part, rank, setting.ranks, torch.device("cpu"), inside, out)
    count = setting.micro_batches
    if method == "gpipe":
        schedule: Any = ScheduleGPipe(stage, count, loss_fn=cross_entropy)
    elif method == "1f1b":
        schedule = Schedule1F1B(stage, count, loss_fn=cross_entropy)
    else:
        schedule = ScheduleInterleavedZeroBubble([stage], count, loss_fn=cross_entropy)

    def step() -> None:
        if rank == 0:
            schedule.step(x)
        elif last:
            schedule.step(target=labels, losses=[])
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()

    return Runner(step, lambda: stage.bytes_sent, dist.barrier)


def _ddp(setting: Setting, rank: int, x: Tensor, labels: Tensor) -> Runner:
    model = DistributedDataParallel(nn.Sequential(*parts(setting)))
    optimizer = BlockAdam(model.parameters())
    own = slice(rank, None, setting.ranks)
    steps = [0]
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())

    def step() -> None:
        cross_entropy(model(x[own]), labels[own]).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps[0] += 1

    # A ring all-reduce sends every gradient 2 (n - 1) / n times.
    per_step = 2 * (setting.ranks - 1) * parameters // setting.ranks
    return Runner(step, lambda: per_step * steps[0], dist.barrier)
