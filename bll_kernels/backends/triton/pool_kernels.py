"""Grid pooling of a map [B, C, H, W] in any of the two memory layouts.

A plane is one channel of one image. Strides say where a plane's pixels are: with CHANNELS_LAST
neighbouring planes are neighbours in memory, else neighbouring pixels of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def cell_bounds(index, size, side):
    """First position of a cell and the one behind its last, as in adaptive average pooling."""
    return index * size // side, ((index + 1) * size + side - 1) // side


@triton.jit
def plane_start(plane, channels, height, width, CHANNELS_LAST: tl.constexpr):
    """Offset of a plane's first pixel."""
    pixels = tl.cast(height, tl.int64) * width
    start = plane * pixels
    if CHANNELS_LAST:
        start = (plane // channels) * (pixels * channels) + plane % channels
    return start


@triton.jit
def pixel_offset(y, x, channels, width, CHANNELS_LAST: tl.constexpr):
    """Offset of a pixel within its plane."""
    offset = y.to(tl.int64) * width + x
    if CHANNELS_LAST:
        offset = offset * channels
    return offset


@triton.jit
def cell_tile(
    x_ptr, start, inside, position, top, left, count, cell_width, channels, width,
    CHANNELS_LAST: tl.constexpr,
):  # fmt: skip
    """Pixels `position` of a cell, row by row, for a tile of planes, and which of them exist."""
    within = position < count
    y, x = top + position // cell_width, left + position % cell_width
    at = start[:, None] + pixel_offset(y, x, channels, width, CHANNELS_LAST)[None, :]
    mask = inside[:, None] & within[None, :]
    return tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32), mask


@triton.jit(do_not_specialize=["planes"])
def pool_cells(
    x_ptr, out_ptr, spread_ptr, place_ptr,
    planes, channels, height, width, side,
    KIND: tl.constexpr, CHANNELS_LAST: tl.constexpr, PLANES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """One cell of a tile of planes.

    out gets the mean, maximum or deviation; for the backward pass spread gets the cell's mean
    (std), place the position of its first maximum (max).
    """
    cells = side * side
    program = tl.program_id(0)
    cell = program % cells
    plane = (program // cells).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    inside = plane < planes
    top, bottom = cell_bounds(cell // side, height, side)
    left, right = cell_bounds(cell % side, width, side)
    cell_width = right - left
    count = (bottom - top) * cell_width
    start = plane_start(plane, channels, height, width, CHANNELS_LAST)
    lane = tl.arange(0, PIXELS)
    at = plane * cells + cell
    if KIND == "max":
        best = tl.full([PLANES], float("-inf"), tl.float32)
        place = tl.zeros([PLANES], tl.int32)
        broken = tl.zeros([PLANES], tl.int32)
        for begin in range(0, count, PIXELS):
            position = begin + lane
            x, mask = cell_tile(
                x_ptr, start, inside, position, top, left, count, cell_width, channels, width,
                CHANNELS_LAST,
            )  # fmt: skip
            # The first NaN of a cell is its maximum, as in torch.
            rank = tl.where(x != x, float("inf"), x)
            rank = tl.where(mask, rank, float("-inf"))
            peak = tl.max(rank, 1)
            nan_here = tl.max((mask & (x != x)).to(tl.int32), 1)
            candidate = mask & tl.where((nan_here > 0)[:, None], x != x, rank == peak[:, None])
            first = tl.min(tl.where(candidate, position[None, :], 2147483647), 1)
            better = (broken == 0) & ((nan_here > 0) | (peak > best) | (begin == 0))
            place = tl.where(better, first, place)
            best = tl.where(better, peak, best)
            broken = tl.where(nan_here > 0, 1, broken)
        tl.store(out_ptr + at, tl.where(broken > 0, float("nan"), best), mask=inside)
        if place_ptr is not None:
            tl.store(place_ptr + at, place, mask=inside)
    else:
        total = tl.zeros([PLANES, PIXELS], tl.float32)
        for begin in range(0, count, PIXELS):
            x, _ = cell_tile(
                x_ptr, start, inside, begin + lane, top, left, count, cell_width, channels,
                width, CHANNELS_LAST,
            )  # fmt: skip
            total += x
        mean = tl.sum(total, 1) / count
        if KIND == "mean":
            tl.store(out_ptr + at, mean, mask=inside)
        else:
            square = tl.zeros([PLANES, PIXELS], tl.float32)
            drift = tl.zeros([PLANES, PIXELS], tl.float32)
            first = tl.load(
                x_ptr + start + pixel_offset(
                    tl.cast(top, tl.int32), left, channels, width, CHANNELS_LAST
                ),
                mask=inside, other=0.0,
            ).to(tl.float32)  # fmt: skip
            varies = tl.zeros([PLANES], tl.int32)
            for begin in range(0, count, PIXELS):
                x, mask = cell_tile(
                    x_ptr, start, inside, begin + lane, top, left, count, cell_width, channels,
                    width, CHANNELS_LAST,
                )  # fmt: skip
                gap = tl.where(mask, x - mean[:, None], 0.0)
                square += gap * gap
                drift += gap
                differs = (mask & (x != first[:, None])).to(tl.int32)
                varies = tl.where(tl.max(differs, 1) > 0, 1, varies)
            # What rounding left in the mean: constant cells must come out as exactly 0.
            rest = tl.sum(drift, 1) / count
            variance = (tl.sum(square, 1) - count * rest * rest) / tl.where(count > 1, count - 1, 1)
            variance = tl.where(variance < 0.0, 0.0, variance)
            deviation = tl.where(varies > 0, tl.sqrt(variance), 0.0 * first)
            tl.store(out_ptr + at, deviation, mask=inside)
            if spread_ptr is not None:
                tl.store(spread_ptr + at, mean + rest, mask=inside)


@triton.jit(do_not_specialize=["planes"])
def spread_cells(
    grad_ptr, x_ptr, deviation_ptr, mean_ptr, place_ptr, out_ptr,
    planes, channels, height, width, side, reach_y, reach_x,
    KIND: tl.constexpr, CHANNELS_LAST: tl.constexpr, PLANES: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Gradient of a tile of pixels: the cells that hold a pixel, added in their order."""
    cells = side * side
    pixels = height * width
    chunks = tl.cdiv(pixels, PIXELS)
    program = tl.program_id(0)
    pixel = (program % chunks) * PIXELS + tl.arange(0, PIXELS)
    plane = (program // chunks).to(tl.int64) * PLANES + tl.arange(0, PLANES)
    mask = (plane < planes)[:, None] & (pixel < pixels)[None, :]
    y, x = pixel // width, pixel % width
    at = (
        plane_start(plane, channels, height, width, CHANNELS_LAST)[:, None]
        + pixel_offset(y, x, channels, width, CHANNELS_LAST)[None, :]
    )
    if KIND == "std":
        value = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    total = tl.zeros([PLANES, PIXELS], tl.float32)
    for step_y in range(0, reach_y):
        i = y * side // height + step_y
        top, bottom = cell_bounds(i, height, side)
        for step_x in range(0, reach_x):
            j = x * side // width + step_x
            left, right = cell_bounds(j, width, side)
            holds = (i < side) & (j < side) & (top <= y) & (left <= x)
            cell = plane[:, None] * cells + (i * side + j)[None, :]
            use = mask & holds[None, :]
            grad = tl.load(grad_ptr + cell, mask=use, other=0.0)
            count = (bottom - top) * (right - left)
            if KIND == "mean":
                total += grad / count.to(tl.float32)[None, :]
            elif KIND == "max":
                place = tl.load(place_ptr + cell, mask=use, other=-1)
                here = (y - top) * (right - left) + x - left
                total += tl.where(place == here[None, :], grad, 0.0)
            else:
                mean = tl.load(mean_ptr + cell, mask=use, other=0.0)
                deviation = tl.load(deviation_ptr + cell, mask=use, other=0.0)
                still = deviation == 0.0
                rest = (count - 1).to(tl.float32)[None, :] * tl.where(still, 1.0, deviation)
                slope = tl.where(still, 0.0, (value - mean) / tl.where(rest == 0.0, 1.0, rest))
                total += grad * slope
    tl.store(out_ptr + at, total, mask=mask)
