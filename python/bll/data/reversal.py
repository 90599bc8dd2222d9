"""Permutations and their reverse: a task without files."""

from __future__ import annotations

import torch
from torch import Tensor


def reversal_batch(
    size: int, symbols: int = 10, *, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Random permutations of ``0 .. symbols - 1``, and each of them in reverse order.

    Args:
        size: Number of sequences.
        symbols: Length of a sequence.
        generator: Source of the random numbers; None: torch's global one.

    Returns:
        Inputs and targets, both ``[size, symbols]``, int64.

    Raises:
        ValueError: A number is below 1.
    """
    for name, value in (("size", size), ("symbols", symbols)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    sequences = torch.rand(size, symbols, generator=generator).argsort(dim=1)
    return sequences, sequences.flip(1)
