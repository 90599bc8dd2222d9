"""The pooling ops."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import pool_kernels
from bll_kernels.backends.triton.launch import Tile, ceil_div, launch, pool_tile, spread_tile
from bll_kernels.backends.triton.operands import check_dtypes


def _layout(x: Tensor) -> tuple[Tensor, bool]:
    """The map in one of the two layouts, and whether channels are last."""
    if x.is_contiguous():
        return x, False
    if x.is_contiguous(memory_format=torch.channels_last):
        return x, True
    return x.contiguous(), False


def reach(size: int, grid: int) -> int:
    """Most cells along one axis that hold one and the same position."""
    return max(-(-(at + 1) * grid // size) - at * grid // size for at in range(size))


def _cells(
    x: Tensor, kind: str, grid: int, last: bool, backward: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Pooled [B, C * g * g], and for the backward pass the means or places of the cells."""
    batch, channels, height, width = x.shape
    size = (batch, channels * grid * grid)
    out = torch.empty(size, dtype=torch.float32, device=x.device)
    mean = torch.empty_like(out) if backward and kind == "std" else None
    place = None
    if backward and kind == "max":
        place = torch.empty(size, dtype=torch.int32, device=x.device)
    pixels = ceil_div(height, grid) * ceil_div(width, grid)
    tile: Tile = pool_tile(pixels, last)
    launch(
        pool_kernels.pool_cells, ceil_div(batch * channels, tile.rows) * grid * grid, tile.warps,
        x_ptr=x, out_ptr=out, spread_ptr=mean, place_ptr=place, planes=batch * channels,
        channels=channels, height=height, width=width, side=grid, KIND=kind, CHANNELS_LAST=last,
        PLANES=tile.rows, PIXELS=tile.columns,
    )  # fmt: skip
    return out, mean, place


def grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    """Pool [B, C, H, W] to [B, C * grid * grid], float32."""
    check_dtypes(x)
    x, last = _layout(x)
    return _cells(x, kind, grid, last, backward=False)[0]


def grid_pool_backward(grad: Tensor, x: Tensor, kind: str, grid: int) -> Tensor:
    """Gradient of the map, in its dtype and memory layout."""
    check_dtypes(x)
    like = x
    x, last = _layout(x)
    out = torch.empty_like(x)
    deviation, mean, place = None, None, None
    if kind != "mean":
        deviation, mean, place = _cells(x, kind, grid, last, backward=True)
    batch, channels, height, width = x.shape
    tile = spread_tile(height * width, last)
    programs = ceil_div(batch * channels, tile.rows) * ceil_div(height * width, tile.columns)
    launch(
        pool_kernels.spread_cells, programs, tile.warps,
        grad_ptr=grad.float().contiguous(), x_ptr=x, deviation_ptr=deviation, mean_ptr=mean,
        place_ptr=place, out_ptr=out, planes=batch * channels, channels=channels, height=height,
        width=width, side=grid, reach_y=reach(height, grid), reach_x=reach(width, grid),
        KIND=kind, CHANNELS_LAST=last, PLANES=tile.rows, PIXELS=tile.columns,
    )  # fmt: skip
    if out.stride() == torch.empty_like(like).stride():
        return out
    return torch.empty_like(like).copy_(out)
