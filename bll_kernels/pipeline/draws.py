"""Random numbers of a forward: the same in every order of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from bll_kernels.pipeline.seeds import forward_seed
from bll_kernels.pipeline.step import GENERATOR, LocalStep

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor


def drawing_forward(
    executor: Executor, step: LocalStep, index: int, micro_batch: int, x: Tensor, labels: Tensor
) -> tuple[Tensor, Any]:
    """A forward that draws random numbers, or may: they depend on seed, block and micro-batch.

    A block whose first forward draws none is taken never to draw any. The caller's random state
    is left alone; forwards that draw take turns.

    Args:
        executor: The executor; `executor.draws` learns whether the block draws.
        step: The block's local step.
        index: Number of the block.
        micro_batch: Counted through the run.
        x: The block's input.
        labels: Its labels.
    """
    count = len(executor.blocks)
    done = executor.batches_done * executor.micro_batches
    gpus = [x.get_device()] if x.is_cuda else []
    with GENERATOR, torch.random.fork_rng(devices=gpus):
        torch.manual_seed(forward_seed(executor.seed, done + micro_batch, count, index))
        before = _states(gpus)
        found = step.forward(x, labels)
        if executor.draws[index] is None:
            after = _states(gpus)
            executor.draws[index] = not all(map(torch.equal, before, after))
        return found


def _states(gpus: list[int]) -> list[Tensor]:
    # The state of a GPU's generator lies on the host: nothing waits for the GPU.
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in gpus)]
