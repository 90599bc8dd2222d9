"""The ops of standardised channels."""

from __future__ import annotations

from torch import Tensor

from bll_kernels.backends.triton import standardize_kernels
from bll_kernels.backends.triton.launch import ceil_div, channel_tile, launch
from bll_kernels.backends.triton.operands import check_dtypes


def standardize_channels(x: Tensor, channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """Rows [B, channels * cells] with every channel at mean 0 and variance 1, and its factor."""
    check_dtypes(x)
    rows, width = x.shape
    out, scale = x.new_empty((rows, width)), x.new_empty((channels,))
    if not x.numel():
        return out, scale.zero_()
    tile = channel_tile(width // channels)
    launch(
        standardize_kernels.standardize, ceil_div(channels, tile.group), tile.warps,
        x_ptr=x.contiguous(), out_ptr=out, scale_ptr=scale, rows=rows, channels=channels,
        cells=width // channels, eps=eps, ROWS=tile.rows, GROUP=tile.group, CELLS=tile.cells,
    )  # fmt: skip
    return out, scale


def standardize_channels_backward(grad: Tensor, standardized: Tensor, scale: Tensor) -> Tensor:
    """Gradient of the rows that were standardised."""
    check_dtypes(standardized)
    rows, width = standardized.shape
    out = standardized.new_empty((rows, width))
    if not standardized.numel():
        return out
    channels = scale.shape[0]
    tile = channel_tile(width // channels)
    launch(
        standardize_kernels.standardize_gradient, ceil_div(channels, tile.group), tile.warps,
        grad_ptr=grad.contiguous(), standard_ptr=standardized.contiguous(),
        scale_ptr=scale.contiguous(), out_ptr=out, rows=rows, channels=channels,
        cells=width // channels, ROWS=tile.rows, GROUP=tile.group, CELLS=tile.cells,
    )  # fmt: skip
    return out
