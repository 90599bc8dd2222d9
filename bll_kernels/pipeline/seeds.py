"""Seeds of the random numbers that forward passes draw."""

from __future__ import annotations


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
