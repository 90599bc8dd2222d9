"""Standardised channels: a program has a few channels, whose numbers it walks over three times."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def channel_tile(
    rows, channels, cells, row, cell,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Offsets of the program's numbers in rows and cells from `row` and `cell` on, and a mask."""
    at = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    channel = (tl.program_id(0) * GROUP + tl.arange(0, GROUP))[None, :, None]
    within = (cell + tl.arange(0, CELLS))[None, None, :]
    mask = (at < rows) & (channel < channels) & (within < cells)
    return (at * channels + channel) * cells + within, mask


@triton.jit
def of_channels(total):
    """Sums of a tile's channels."""
    return tl.sum(tl.sum(total, 2), 0)


@triton.jit(do_not_specialize=["rows"])
def standardize(
    x_ptr, out_ptr, scale_ptr, rows, channels, cells, eps,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) scale, scale = 1 / sqrt(variance + eps), of every channel."""
    count = rows.to(tl.float32) * cells
    total = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    for row in range(0, rows, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(rows, channels, cells, row, cell, ROWS, GROUP, CELLS)
            total += tl.load(x_ptr + at, mask=mask, other=0.0)
    mean = (of_channels(total) / count)[None, :, None]
    total = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    for row in range(0, rows, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(rows, channels, cells, row, cell, ROWS, GROUP, CELLS)
            gap = tl.where(mask, tl.load(x_ptr + at, mask=mask, other=0.0) - mean, 0.0)
            total += gap * gap
    factor = 1.0 / tl.sqrt(of_channels(total) / count + eps)
    for row in range(0, rows, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(rows, channels, cells, row, cell, ROWS, GROUP, CELLS)
            x = tl.load(x_ptr + at, mask=mask, other=0.0)
            tl.store(out_ptr + at, (x - mean) * factor[None, :, None], mask=mask)
    channel = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    tl.store(scale_ptr + channel, factor, mask=channel < channels)


@triton.jit(do_not_specialize=["rows"])
def standardize_gradient(
    grad_ptr, standard_ptr, scale_ptr, out_ptr, rows, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """out = scale (g - mean(g) - z mean(g z)), z the standardised rows."""
    count = rows.to(tl.float32) * cells
    plain = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    along = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    for row in range(0, rows, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(rows, channels, cells, row, cell, ROWS, GROUP, CELLS)
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
            plain += grad
            along += grad * tl.load(standard_ptr + at, mask=mask, other=0.0)
    shift = (of_channels(plain) / count)[None, :, None]
    slope = (of_channels(along) / count)[None, :, None]
    channel = tl.program_id(0) * GROUP + tl.arange(0, GROUP)
    factor = tl.load(scale_ptr + channel, mask=channel < channels, other=0.0)[None, :, None]
    for row in range(0, rows, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(rows, channels, cells, row, cell, ROWS, GROUP, CELLS)
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
            standard = tl.load(standard_ptr + at, mask=mask, other=0.0)
            tl.store(out_ptr + at, (grad - shift - standard * slope) * factor, mask=mask)
