"""Standardised channels: what a channel is shifted and scaled by is gathered, then applied.

A program has some channels of some rows. Where programs share channels, a first launch leaves what
each part of the rows says of them and a second merges that in a fixed order and applies it. Moments
are merged as Chan, Golub and LeVeque (1983) do, which means far from 0 do not hurt.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place(rows, share, channels, GROUP: tl.constexpr):
    """The program's part, where its rows begin and end, and its channels."""
    groups = tl.cdiv(channels, GROUP)
    part = tl.program_id(0) // groups
    begin = part * share
    left = rows - begin
    end = begin + tl.where(left < share, left, share)
    channel = (tl.program_id(0) % groups) * GROUP + tl.arange(0, GROUP)
    return part, begin, end, channel


@triton.jit
def channel_tile(end, channel, channels, cells, row, cell, ROWS: tl.constexpr, CELLS: tl.constexpr):
    """Offsets of the channels' numbers in rows and cells from `row` and `cell` on, and a mask."""
    at = (row + tl.arange(0, ROWS)).to(tl.int64)[:, None, None]
    within = (cell + tl.arange(0, CELLS))[None, None, :]
    mask = (at < end) & (channel < channels)[None, :, None] & (within < cells)
    return (at * channels + channel[None, :, None]) * cells + within, mask


@triton.jit
def of_channels(total):
    """Sums of a tile's channels."""
    return tl.sum(tl.sum(total, 2), 0)


@triton.jit
def together(count, mean, squares):
    """Mean and sum of squared deviations of channels, from those of a tile's lanes."""
    total = of_channels(count)
    near = of_channels(count * mean) / total
    gap = tl.where(count > 0.0, mean - near[None, :, None], 0.0)
    rest = of_channels(count * gap) / total  # what rounding left between `near` and the mean
    gap -= rest[None, :, None]
    return near + rest, of_channels(squares + count * gap * gap)


@triton.jit
def moments(
    x_ptr, begin, end, channel, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of some rows' channels, from one read of them."""
    mean = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    squares = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    met = tl.zeros([1, 1, CELLS], tl.float32)  # numbers of every lane, but in the last rows
    for row in range(begin, end, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(end, channel, channels, cells, row, cell, ROWS, CELLS)
            met += tl.where(cell + tl.arange(0, CELLS) < cells, 1.0, 0.0)[None, None, :]
            weight = 1.0 / tl.where(met > 0.0, met, 1.0)
            gap = tl.where(mask, tl.load(x_ptr + at, mask=mask, other=0.0) - mean, 0.0)
            mean += gap * weight
            squares += gap * gap * (1.0 - weight)
    own_rows = (end - begin - tl.arange(0, ROWS) + ROWS - 1) // ROWS
    own_cells = (cells - tl.arange(0, CELLS) + CELLS - 1) // CELLS
    count = own_rows.to(tl.float32)[:, None, None] * own_cells.to(tl.float32)[None, None, :]
    return together(count, mean, squares)


@triton.jit
def pulls(
    grad_ptr, standard_ptr, begin, end, channel, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient and of its product with the standardised rows, by channel."""
    plain = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    along = tl.zeros([ROWS, GROUP, CELLS], tl.float32)
    for row in range(begin, end, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(end, channel, channels, cells, row, cell, ROWS, CELLS)
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
            plain += grad
            along += grad * tl.load(standard_ptr + at, mask=mask, other=0.0)
    return of_channels(plain), of_channels(along)


@triton.jit
def keep(partial_ptr, part, channel, channels, first, second):
    """Leave what a part says of its channels in partial[part, 2, channels]."""
    at = part.to(tl.int64) * 2 * channels + channel
    tl.store(partial_ptr + at, first, mask=channel < channels)
    tl.store(partial_ptr + at + channels, second, mask=channel < channels)


@triton.jit
def kept(partial_ptr, part, parts, channel, channels):
    """What parts said of channels, [parts, channels, 1] each; 0 outside."""
    at = (part.to(tl.int64)[:, None] * 2 * channels + channel[None, :])[:, :, None]
    mask = ((part < parts)[:, None] & (channel < channels)[None, :])[:, :, None]
    first = tl.load(partial_ptr + at, mask=mask, other=0.0)
    return first, tl.load(partial_ptr + at + channels, mask=mask, other=0.0)


@triton.jit
def merged_moments(
    partial_ptr, rows, share, parts, channel, channels, cells,
    GROUP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared deviations of channels, from those of all parts."""
    mean = tl.zeros([PARTS, GROUP, 1], tl.float32)
    squares = tl.zeros([PARTS, GROUP, 1], tl.float32)
    count = tl.zeros([PARTS, 1, 1], tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        left = rows - part.to(tl.int64) * share
        own_rows = tl.where(part < parts, tl.where(left < share, left, share), 0)
        own = own_rows.to(tl.float32)[:, None, None] * cells
        own_mean, own_squares = kept(partial_ptr, part, parts, channel, channels)
        gap = own_mean - mean
        total = count + own
        weight = own / tl.where(total > 0.0, total, 1.0)
        mean += gap * weight
        squares += own_squares + gap * gap * (count * weight)
        count = total
    return together(count, mean, squares)


@triton.jit
def merged_pulls(partial_ptr, parts, channel, channels, GROUP: tl.constexpr, PARTS: tl.constexpr):
    """Sums of what all parts said."""
    plain = tl.zeros([PARTS, GROUP, 1], tl.float32)
    along = tl.zeros([PARTS, GROUP, 1], tl.float32)
    for first in range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        own_plain, own_along = kept(partial_ptr, part, parts, channel, channels)
        plain += own_plain
        along += own_along
    return of_channels(plain), of_channels(along)


@triton.jit(do_not_specialize=["rows", "share"])
def channel_moments(
    x_ptr, out_ptr, rows, share, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """out[part, :, channel]: mean and sum of squared deviations of the part's rows."""
    part, begin, end, channel = place(rows, share, channels, GROUP)
    mean, squares = moments(x_ptr, begin, end, channel, channels, cells, ROWS, GROUP, CELLS)
    keep(out_ptr, part, channel, channels, mean, squares)


@triton.jit(do_not_specialize=["rows", "share"])
def channel_pulls(
    grad_ptr, standard_ptr, out_ptr, rows, share, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr,
):  # fmt: skip
    """out[part, :, channel]: sums of g and of g z of the part's rows, z the standardised ones."""
    part, begin, end, channel = place(rows, share, channels, GROUP)
    plain, along = pulls(
        grad_ptr, standard_ptr, begin, end, channel, channels, cells, ROWS, GROUP, CELLS
    )
    keep(out_ptr, part, channel, channels, plain, along)


@triton.jit(do_not_specialize=["rows", "share", "parts"])
def standardize(
    x_ptr, partial_ptr, out_ptr, scale_ptr, rows, share, parts, channels, cells, eps,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """out = (x - mean) scale, scale = 1 / sqrt(variance + eps), of every channel.

    `partial` is what `channel_moments` left; None where a program has all rows of its channels.
    """
    part, begin, end, channel = place(rows, share, channels, GROUP)
    if partial_ptr is None:
        mean, squares = moments(x_ptr, begin, end, channel, channels, cells, ROWS, GROUP, CELLS)
    else:
        mean, squares = merged_moments(
            partial_ptr, rows, share, parts, channel, channels, cells, GROUP, PARTS
        )
    factor = 1.0 / tl.sqrt(squares / (rows.to(tl.float32) * cells) + eps)
    for row in range(begin, end, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(end, channel, channels, cells, row, cell, ROWS, CELLS)
            gap = tl.load(x_ptr + at, mask=mask, other=0.0) - mean[None, :, None]
            tl.store(out_ptr + at, gap * factor[None, :, None], mask=mask)
    if part == 0:
        tl.store(scale_ptr + channel, factor, mask=channel < channels)


@triton.jit(do_not_specialize=["rows", "share", "parts"])
def standardize_gradient(
    grad_ptr, standard_ptr, scale_ptr, partial_ptr, out_ptr, rows, share, parts, channels, cells,
    ROWS: tl.constexpr, GROUP: tl.constexpr, CELLS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """out = scale (g - mean(g) - z mean(g z)), z the standardised rows.

    `partial` is what `channel_pulls` left; None where a program has all rows of its channels.
    """
    _, begin, end, channel = place(rows, share, channels, GROUP)
    if partial_ptr is None:
        plain, along = pulls(
            grad_ptr, standard_ptr, begin, end, channel, channels, cells, ROWS, GROUP, CELLS
        )
    else:
        plain, along = merged_pulls(partial_ptr, parts, channel, channels, GROUP, PARTS)
    count = rows.to(tl.float32) * cells
    shift, slope = (plain / count)[None, :, None], (along / count)[None, :, None]
    factor = tl.load(scale_ptr + channel, mask=channel < channels, other=0.0)[None, :, None]
    for row in range(begin, end, ROWS):
        for cell in range(0, cells, CELLS):
            at, mask = channel_tile(end, channel, channels, cells, row, cell, ROWS, CELLS)
            grad = tl.load(grad_ptr + at, mask=mask, other=0.0)
            standard = tl.load(standard_ptr + at, mask=mask, other=0.0)
            tl.store(out_ptr + at, (grad - shift - standard * slope) * factor, mask=mask)
