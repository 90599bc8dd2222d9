"""Seeds of the random numbers that forward passes draw, and the generators they stand for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def forward_seed(seed: int, micro_batch: int, blocks: int, block: int) -> int:
    """Seed of one block's forward on one micro-batch, whatever runs it and when.

    Args:
        seed: Of the run.
        micro_batch: Counted through all batches of the run.
        blocks: Blocks of the whole network.
        block: Index of the block.
    """
    # A large seed stays within what a generator takes; others are not changed.
    return ((seed * 1_000_003 + micro_batch) * blocks + block) % 2**63


def gpus_of(x: Tensor) -> list[int]:
    """Indices of the GPUs whose generators work on a tensor may draw from."""
    return [x.get_device()] if x.is_cuda else []


def random_states(gpus: Sequence[int]) -> list[Tensor]:
    """States of the CPU's generator and of those GPUs'; they lie on the host."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(gpu) for gpu in gpus)]


def set_random_states(states: Sequence[Tensor], gpus: Sequence[int]) -> None:
    """What `random_states` of the same GPUs gave."""
    torch.set_rng_state(states[0])
    for gpu, state in zip(gpus, states[1:], strict=True):
        torch.cuda.set_rng_state(state, gpu)


@contextmanager
def seeded(seed: int, gpus: Sequence[int] = ()) -> Iterator[None]:
    """Inside, the CPU's generator and those GPUs' start from a seed; after it they are as before.

    `torch.manual_seed` would seed the generators of all devices.
    """
    before = random_states(gpus)
    torch.default_generator.manual_seed(seed)
    for gpu in gpus:
        torch.cuda.default_generators[gpu].manual_seed(seed)
    try:
        yield
    finally:
        set_random_states(before, gpus)
