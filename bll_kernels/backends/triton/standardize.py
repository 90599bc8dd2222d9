"""The ops of standardised channels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from bll_kernels.backends.triton import standardize_kernels
from bll_kernels.backends.triton.launch import (
    ceil_div,
    channel_merge,
    channel_parts,
    channel_tile,
    launch,
)
from bll_kernels.backends.triton.operands import check_dtypes


def _launch(
    gather: Any, apply: Any, channels: int, gathered: dict[str, Tensor], **rest: Any
) -> None:
    """Gather what channels are shifted and scaled by, and apply it.

    Args:
        gather: kernel that leaves it in a buffer, where several programs share a channel.
        apply: kernel that merges and applies it, or gathers it first where there is no buffer.
        channels: of the rows.
        gathered: operands of both, [rows, channels * cells].
        rest: further arguments of `apply`.
    """
    like = next(iter(gathered.values()))
    rows, width = like.shape
    tile, (parts, share) = channel_tile(width // channels), channel_parts(rows, channels, width)
    programs = parts * ceil_div(channels, tile.group)
    shared = {
        **gathered, "rows": rows, "share": share, "channels": channels,
        "cells": width // channels, "ROWS": tile.rows, "GROUP": tile.group, "CELLS": tile.cells,
    }  # fmt: skip
    partial = None
    if parts > 1:
        partial = like.new_empty((parts, 2, channels))
        launch(gather, programs, tile.warps, **shared, out_ptr=partial)
    launch(
        apply, programs, tile.warps, **shared, partial_ptr=partial, parts=parts,
        PARTS=channel_merge(tile), **rest,
    )  # fmt: skip


def standardize_channels(x: Tensor, channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """Rows [B, channels * cells] with every channel at mean 0 and variance 1, and its factor."""
    check_dtypes(x)
    out, scale = x.new_empty(x.shape), x.new_empty((channels,))
    if not x.numel():
        return out, scale.zero_()
    _launch(
        standardize_kernels.channel_moments, standardize_kernels.standardize, channels,
        {"x_ptr": x.contiguous()}, out_ptr=out, scale_ptr=scale, eps=eps,
    )  # fmt: skip
    return out, scale


def standardize_channels_backward(grad: Tensor, standardized: Tensor, scale: Tensor) -> Tensor:
    """Gradient of the rows that were standardised."""
    check_dtypes(standardized)
    out = standardized.new_empty(standardized.shape)
    if not standardized.numel():
        return out
    _launch(
        standardize_kernels.channel_pulls, standardize_kernels.standardize_gradient,
        scale.shape[0],
        {"grad_ptr": grad.contiguous(), "standard_ptr": standardized.contiguous()},
        scale_ptr=scale.contiguous(), out_ptr=out,
    )  # fmt: skip
    return out
