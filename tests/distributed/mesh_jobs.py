"""Ranks with messages on their way down, and ranks in two dimensions."""

from __future__ import annotations

from typing import Any

import jobs
import torch
from torch import Tensor

import bll.distributed
from bll.distributed.feedback import FeedbackChain


def chained(rank: int, world: int, *, steps: int, micro_batches: int) -> dict[str, Any]:
    """Train while messages travel down: at each block a fixed matrix times the one from above."""
    model = jobs.network()
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=micro_batches,
        seed=5,
        timeout=60.0,
    )
    size = 32 // micro_batches
    mixing = mixings(world)[rank]

    def step(labels: Tensor, above: Tensor | None) -> Tensor:
        start = torch.nn.functional.one_hot(labels, jobs.CLASSES).float()
        return (start if above is None else above) @ mixing

    like = None if stage.is_last else torch.empty(size, jobs.CLASSES)
    chain = FeedbackChain(stage.groups.feedback, like, step)
    messages: list[list[Tensor]] = []
    for x, labels in jobs.batches(steps, 32):
        chain.ask()
        # Activations go up while the messages of the same batch come down.
        stage.step(x if rank == 0 else None, labels)
        messages.append([chain.pass_on(part) for part in labels.chunk(micro_batches)])
    chain.drain()
    stage.gather()
    sent = steps * 32 * jobs.CLASSES * 4 if rank > 0 else 0
    return {
        **jobs.outcome(model, stage.optimizers, messages),
        "bytes": chain.traffic.bytes_sent == sent,
        "up": stage.traffic.bytes_sent,
    }


def mixings(world: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(jobs.CLASSES, jobs.CLASSES, generator=generator) for _ in range(world)]


def two_by_two(rank: int, world: int, *, steps: int, rule: str) -> dict[str, Any]:
    """Two pipelines of two ranks, each with half of every micro-batch."""
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "stages"))
    model = jobs.network(norm=False, dropout=0.0, rule=rule)
    if rank >= 2:
        # A replica that starts elsewhere is brought to the first one's weights.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=4,
        timeout=60.0,
        mesh=mesh,
    )
    for x, labels in jobs.batches(steps, 32):
        half = slice(16 * (rank // 2), 16 * (rank // 2) + 16)
        stage.step(x[half], labels[half])
    stage.gather()
    return {"model": {k: v.tolist() for k, v in model.state_dict().items()}, "names": stage.names}


def backwards(rank: int, world: int, *, steps: int) -> dict[str, Any]:
    """A pipeline that begins at the last rank."""
    from torch.distributed.device_mesh import DeviceMesh

    model = jobs.network()
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=4,
        seed=5,
        timeout=60.0,
        mesh=DeviceMesh("cpu", torch.arange(world).flip(0)[None]),
    )
    for x, labels in jobs.batches(steps, 32):
        stage.step(x if rank == world - 1 else None, labels)
    stage.gather()
    return {**jobs.outcome(model, stage.optimizers), "stage": stage.layout.stage}
