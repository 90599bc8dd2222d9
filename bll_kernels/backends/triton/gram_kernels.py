"""The Gram loss: rows of length one, their products tile by tile, and the gradient.

A tile [ROWS, COLUMNS] of the Gram matrix lives in registers and is made twice, for the value and
for the gradient; neither it nor its target is ever stored.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def centred(x_ptr, first, mean, column, inside, CENTER: tl.constexpr):
    """A row's elements seen from its first one, minus their mean; 0 outside."""
    x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
    if CENTER:
        x = (x - first) - mean
    return tl.where(inside, x, 0.0)


@triton.jit
def unit_rows(x_ptr, out_ptr, inverse_ptr, width, x_row, CENTER: tl.constexpr, BLOCK: tl.constexpr):
    """out = row / norm, inverse = 1 / norm; both 0 for a row of zeros (constant if CENTER)."""
    row = tl.program_id(0).to(tl.int64)
    x_at = x_ptr + row * x_row
    lane = tl.arange(0, BLOCK)
    first = tl.load(x_at).to(tl.float32)
    mean = 0.0
    if CENTER:
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(0, width, BLOCK):
            column = start + lane
            total += centred(x_at, first, 0.0, column, column < width, True)
        mean = tl.sum(total, 0) / width
    peak = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + lane
        x = tl.abs(centred(x_at, first, mean, column, column < width, CENTER))
        peak = tl.where(x > peak, x, peak)
    size = tl.max(peak, 0)
    # Divided by their largest element, squares neither overflow nor vanish. NaN is not larger.
    size = tl.where(size == 0.0, 1.0, size)
    square = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        column = start + lane
        x = centred(x_at, first, mean, column, column < width, CENTER) / size
        square += x * x
    norm = tl.sqrt_rn(tl.sum(square, 0))
    zero = norm == 0.0
    safe = tl.where(zero, 1.0, norm)
    for start in range(0, width, BLOCK):
        column = start + lane
        x = centred(x_at, first, mean, column, column < width, CENTER) / size
        tl.store(out_ptr + row * width + column, x / safe, mask=column < width)
    tl.store(inverse_ptr + row, tl.where(zero, 0.0, (1.0 / safe) / size))


@triton.jit
def products(unit_ptr, row, column, rows, width, BLOCK: tl.constexpr):
    """[ROWS, COLUMNS] dot products of rows `row` and `column`."""
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, width, BLOCK):
        latent = start + lane
        wide = latent < width
        left_mask = (row < rows)[:, None] & wide[None, :]
        left = tl.load(
            unit_ptr + (row * width)[:, None] + latent[None, :], mask=left_mask, other=0.0
        )
        right_mask = wide[:, None] & (column < rows)[None, :]
        right = tl.load(
            unit_ptr + (column * width)[None, :] + latent[:, None], mask=right_mask, other=0.0
        )
        total = tl.dot(left, right, total, input_precision="ieee")
    return total


@triton.jit
def gaps(
    unit_ptr, target_ptr, labels_ptr, row, column, rows, width, target_width, same, other,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """S - T of a tile, 0 outside the matrix."""
    gap = products(unit_ptr, row, column, rows, width, BLOCK)
    if labels_ptr is not None:
        left = tl.load(labels_ptr + row, mask=row < rows, other=0)
        right = tl.load(labels_ptr + column, mask=column < rows, other=0)
        gap -= tl.where(left[:, None] == right[None, :], same, other)
    if target_ptr is not None:
        gap -= products(target_ptr, row, column, rows, target_width, BLOCK)
    return tl.where((row < rows)[:, None] & (column < rows)[None, :], gap, 0.0)


@triton.jit(do_not_specialize=["rows"])
def gram_values(
    unit_ptr, target_ptr, labels_ptr, out_ptr, rows, width, target_width, same, other,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[row, tile]: the tile's share of the sum of squared gaps of a row."""
    tiles = tl.cdiv(rows, COLUMNS)
    tile = tl.program_id(0) % tiles
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tile.to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    gap = gaps(
        unit_ptr, target_ptr, labels_ptr, row, column, rows, width, target_width, same, other,
        BLOCK,
    )  # fmt: skip
    tl.store(out_ptr + row * tiles + tile, tl.sum(gap * gap, 1), mask=row < rows)


@triton.jit(do_not_specialize=["rows", "parts"])
def gram_pulls(
    unit_ptr, target_ptr, labels_ptr, factor_ptr, out_ptr, rows, width, target_width, parts,
    same, other, scale, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[part, row] = scale * sum over the part's columns of (f_i + f_j) * gap_ij * unit_j."""
    part = (tl.program_id(0) % parts).to(tl.int64)
    row = (tl.program_id(0) // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    own = tl.load(factor_ptr + row, mask=inside, other=0.0)
    lane = tl.arange(0, BLOCK)
    out_at = out_ptr + ((part * rows + row) * width)[:, None]
    share = tl.cdiv(tl.cdiv(rows, COLUMNS), parts) * COLUMNS
    begin = part * share
    end = tl.where(begin + share < rows, begin + share, rows)
    for first in range(begin, end, COLUMNS):
        column = first + tl.arange(0, COLUMNS)
        gap = gaps(
            unit_ptr, target_ptr, labels_ptr, row, column, rows, width, target_width, same, other,
            BLOCK,
        )  # fmt: skip
        factor = tl.load(factor_ptr + column, mask=column < rows, other=0.0)
        coefficient = (own[:, None] + factor[None, :]) * gap * scale
        for start in range(0, width, BLOCK):
            latent = start + lane
            wide = latent < width
            terms = tl.load(
                unit_ptr + (column * width)[:, None] + latent[None, :],
                mask=(column < rows)[:, None] & wide[None, :],
                other=0.0,
            )
            mask = inside[:, None] & wide[None, :]
            # The program alone owns these elements: what it stored, it reads again.
            stored = (inside & (0 * row + first > begin))[:, None] & wide[None, :]
            total = tl.load(out_at + latent[None, :], mask=stored, other=0.0)
            total = tl.dot(coefficient, terms, total, input_precision="ieee")
            tl.store(out_at + latent[None, :], total, mask=mask)
        tl.debug_barrier()


@triton.jit
def summed(pull_ptr, parts, size, at, inside):
    """The parts of a pull, added in their order."""
    total = tl.load(pull_ptr + at, mask=inside, other=0.0)
    for part in range(1, parts):
        total += tl.load(pull_ptr + tl.cast(part, tl.int64) * size + at, mask=inside, other=0.0)
    return total


@triton.jit(do_not_specialize=["rows", "parts"])
def gram_project(pull_ptr, unit_ptr, inverse_ptr, out_ptr, rows, width, parts, BLOCK: tl.constexpr):
    """out = (pull - (pull . unit) unit) * inverse; 0 for rows without direction."""
    row = tl.program_id(0).to(tl.int64)
    size = tl.cast(rows, tl.int64) * width
    lane = tl.arange(0, BLOCK)
    along = tl.zeros([BLOCK], tl.float32)
    for start in range(0, width, BLOCK):
        inside = start + lane < width
        at = row * width + start + lane
        unit = tl.load(unit_ptr + at, mask=inside, other=0.0)
        along += summed(pull_ptr, parts, size, at, inside) * unit
    slope = tl.sum(along, 0)
    inverse = tl.load(inverse_ptr + row)
    for start in range(0, width, BLOCK):
        inside = start + lane < width
        at = row * width + start + lane
        unit = tl.load(unit_ptr + at, mask=inside, other=0.0)
        grad = (summed(pull_ptr, parts, size, at, inside) - slope * unit) * inverse
        tl.store(out_ptr + at, tl.where(inverse == 0.0, 0.0, grad), mask=inside)
