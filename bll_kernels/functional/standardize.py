"""Channels of mean 0 and variance 1 over the batch."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from bll_kernels.autograd import StandardizeChannels
from bll_kernels.backends.selection import select
from bll_kernels.functional import checks
from bll_kernels.ops import op
from bll_kernels.spec import accumulate_dtype

#: Added to the variance.
EPSILON: Final = 1e-5


def standardize_channels(x: Tensor) -> Tensor:
    """Bring every channel to mean 0 and variance 1 over everything but the channels.

    What batch normalisation does in training, without weights or running statistics
    (docs/method.md section 3): (x - mean) / sqrt(variance + 1e-5) with the variance of the
    population. Gradients go through mean and variance, so that no loss behind can pull at either.

    Args:
        x: [B, C, ...], channels on the second dimension.

    Returns:
        The shape of x, float32 (float64 for float64).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, or one value to each channel.
    """
    checks.check_float_tensor("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected [B, C, ...] with 2 or more dimensions, got {tuple(x.shape)}")
    rows = x.reshape(x.shape[0], math.prod(x.shape[1:])).to(accumulate_dtype(x.dtype))
    return standardize_rows(rows, x.shape[1]).reshape(x.shape)


def standardize_rows(rows: Tensor, channels: int) -> Tensor:
    """`standardize_channels` of rows [B, channels * cells] in an accumulate dtype."""
    if channels and rows.numel() == channels:
        raise ValueError(
            "standardize: expected two values or more of each channel, got one: a batch of one row "
            "with one cell"
        )
    backend = select(rows.device.type, rows.dtype, "standardize_channels")
    if torch.is_grad_enabled() and rows.requires_grad:
        standardized, _ = StandardizeChannels.apply(rows, backend, channels, EPSILON)
    else:
        standardized, _ = op(backend, "standardize_channels")(rows, channels, EPSILON)
    result: Tensor = standardized
    return result
