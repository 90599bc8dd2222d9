"""Pooling of a map to a grid of cells, in front of a loss or on its own."""

from __future__ import annotations

from torch import Tensor

from bll_kernels.backends.selection import select
from bll_kernels.functional import checks
from bll_kernels.functional.calls import pool_map


def grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    """Pool a map to a `grid` x `grid` grid per channel; one read of the map.

    Cells are those of `torch.nn.functional.adaptive_avg_pool2d`: cell i spans
    floor(i H / g) to ceil((i + 1) H / g), so neighbours overlap when g does not divide H.

    Args:
        x: [B, C, H, W], contiguous or channels-last memory.
        kind: ``"mean"``; ``"max"`` (the first of equal maxima gets the gradient); ``"std"``
            (unbiased; 0 with zero gradient for constant and one-pixel cells).
        grid: cells per side, at least 1.

    Returns:
        [B, C * grid * grid], float32 (float64 for float64), latents ordered (C, g, g).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value.
    """
    checks.check_pool_arguments(kind, grid)
    checks.check_map("x", x)
    return pool_map(x, kind, grid, select(x.device.type, x.dtype, "grid_pool"))
