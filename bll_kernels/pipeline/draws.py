"""Random numbers of a forward: the same in every order of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_kernels.pipeline.device import Device
from bll_kernels.pipeline.seeds import forward_seed, gpus_of, random_states, seeded
from bll_kernels.pipeline.step import GENERATOR, LocalStep

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor


def drawing_forward(
    executor: Executor, step: LocalStep, index: int, micro_batch: int, x: Tensor, labels: Tensor
) -> tuple[Tensor, Any]:
    """A forward that draws random numbers, or may: they depend on seed, block and micro-batch.

    A block whose first forward draws none is taken never to draw any. The caller's random state
    is left alone; forwards that draw take turns. A graph draws the same numbers otherwise, see
    `streams`.

    Args:
        executor: The executor; `executor.draws` learns whether the block draws, and
            `executor.draws_on_host` whether from the host's generator though it works on a GPU.
        step: The block's local step.
        index: Number of the block.
        micro_batch: Counted through the run.
        x: The block's input.
        labels: Its labels.
    """
    count = len(executor.blocks)
    done = executor.batches_done * executor.micro_batches
    gpus = gpus_of(x)
    seed = forward_seed(executor.seed, done + micro_batch, count, index)
    with GENERATOR, seeded(seed, gpus):
        before = random_states(gpus)
        found = step.forward(x, labels)
        if executor.draws[index] is None:
            after = random_states(gpus)
            changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
            executor.draws[index] = any(changed)
            executor.draws_on_host[index] = bool(gpus) and changed[0]
        return found


def streams(executor: Executor, device: Device) -> dict[tuple[int, int], torch.Generator]:
    """One stream of random numbers for each forward of a step that draws, for a graph.

    Returns:
        Streams by (block, micro-batch of the batch).
    """
    return {
        (block, micro_batch): device.random_stream()
        for block, draws in enumerate(executor.draws)
        if draws
        for micro_batch in range(executor.micro_batches)
    }


def seed_streams(executor: Executor, found: Mapping[tuple[int, int], torch.Generator]) -> None:
    """Give the streams of the next step the seeds that `drawing_forward` would use."""
    done = executor.batches_done * executor.micro_batches
    for (block, micro_batch), stream in found.items():
        count = len(executor.blocks)
        stream.manual_seed(forward_seed(executor.seed, done + micro_batch, count, block))
