"""Grid pooling of the reference backend: loops over the g x g cells, any layout."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bll_kernels.spec import accumulate_dtype


def _bounds(size: int, grid: int) -> list[slice]:
    """Cells as in adaptive average pooling; neighbours overlap when `grid` does not divide."""
    return [slice(i * size // grid, -(-(i + 1) * size // grid)) for i in range(grid)]


def _cells(x: Tensor, grid: int) -> Iterator[tuple[int, slice, slice]]:
    rows, columns = _bounds(x.shape[2], grid), _bounds(x.shape[3], grid)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            yield i * grid + j, row, column


def grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    """Pool [B, C, H, W] to [B, C * grid * grid] in the accumulate dtype."""
    dtype = accumulate_dtype(x.dtype)
    out = torch.empty((*x.shape[:2], grid * grid), dtype=dtype, device=x.device)
    for index, rows, columns in _cells(x, grid):
        cell = x[:, :, rows, columns].to(dtype).flatten(2)
        if kind == "mean":
            out[:, :, index] = cell.mean(-1)
        elif kind == "max":
            out[:, :, index] = cell.amax(-1)
        elif cell.shape[-1] == 1:
            out[:, :, index] = 0 * cell[:, :, 0]
        elif cell.numel():
            out[:, :, index] = cell.std(-1)
    return out.flatten(1)


def grid_pool_backward(grad: Tensor, x: Tensor, kind: str, grid: int) -> Tensor:
    """Gradient of the map, in its dtype and memory layout."""
    dtype = grad.dtype
    out = torch.zeros_like(x, dtype=dtype)
    grad = grad.reshape(*x.shape[:2], grid * grid)
    for index, rows, columns in _cells(x, grid):
        cell = x[:, :, rows, columns].to(dtype)
        upstream = grad[:, :, index, None, None]
        target = out[:, :, rows, columns]
        count = cell.shape[2] * cell.shape[3]
        if kind == "mean":
            target += upstream / count
        elif kind == "max":
            first = cell.flatten(2).argmax(-1, keepdim=True)
            found = torch.zeros_like(cell.flatten(2), dtype=torch.bool).scatter_(2, first, True)
            target += torch.where(found.reshape(cell.shape), upstream, 0)
        elif count > 1 and cell.numel():
            centred = cell - cell.mean((2, 3), keepdim=True)
            std = cell.std((2, 3), keepdim=True)
            slope = torch.where(std == 0, 0, centred / ((count - 1) * std))
            target += upstream * slope
    return out.to(x.dtype)
