"""The element kernels: any family by its element function.

A family of independent latents gives value and gradients of an element; a categorical one gives
the gradients, from the statistics of the element's group (group_kernels.py).
A tile is [ROWS, COLUMNS] of latents. Rows stand `a_row` apart, the planes of a latent `a_plane`;
gradients are contiguous. `labels_ptr` is None for a dense message. A label outside the table
gives NaN, and touches no memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.families.special_triton import float8_bits


@triton.jit
def row_factor(weight_ptr, weight_stride, row, inside):
    """The weight of every row as float32; 1 without weights."""
    factor = tl.where(inside, 1.0, 0.0)
    if weight_ptr is not None:
        factor = tl.load(weight_ptr + row * weight_stride, mask=inside, other=0.0).to(tl.float32)
    return factor


@triton.jit
def message_rows(labels_ptr, row, inside, classes):
    """Which row of b belongs to every row of a, and whether it exists."""
    source = row
    exists = inside
    if labels_ptr is not None:
        source = tl.load(labels_ptr + row, mask=inside, other=0)
        exists = inside & (source >= 0) & (source < classes)
    return source, exists


@triton.jit
def section(start_ptr, label, part, parts):
    """Where one of the `parts` of a label's rows begins and ends in their order."""
    first = tl.load(start_ptr + label)
    last = tl.load(start_ptr + label + 1)
    share = tl.cdiv(last - first, parts)
    begin = first + part * share
    end = begin + share
    return begin, tl.where(end < last, end, last)


@triton.jit
def group_stats(stats_ptr, units, row, column, mask, groups, group):
    """The statistics [7, units] of every element's group."""
    at = stats_ptr + (row * groups)[:, None] + (column // group)[None, :]
    max_a = tl.load(at, mask=mask, other=0.0)
    inverse_z = tl.load(at + units, mask=mask, other=0.0)
    anchor = tl.load(at + 2 * units, mask=mask, other=0.0)
    centre = tl.load(at + 3 * units, mask=mask, other=0.0)
    first = tl.load(at + 4 * units, mask=mask, other=0.0)
    second = tl.load(at + 5 * units, mask=mask, other=0.0)
    inverse_zr = tl.load(at + 6 * units, mask=mask, other=0.0)
    return max_a, inverse_z, anchor, centre, first, second, inverse_zr


@triton.jit
def grouped(
    TERMS: tl.constexpr, a, b, stats_ptr, units, row, column, mask, groups, group, tilt,
    LOSS: tl.constexpr,
):  # fmt: skip
    """Gradients of elements of a tile, each from its group's statistics."""
    max_a, inverse_z, anchor, centre, first, second, inverse_zr = group_stats(
        stats_ptr, units, row, column, mask, groups, group
    )
    return TERMS(a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS)


@triton.jit
def store_next(at, mean, mask):
    """Means in the dtype they are stored in; bytes are float8_e4m3fn."""
    if at.dtype.element_ty == tl.uint8:
        tl.store(at, float8_bits(mean), mask=mask)
    else:
        tl.store(at, mean, mask=mask)


@triton.jit(
    do_not_specialize=["rows", "classes", "chunks", "groups", "weight_stride", "grad_stride"]
)
def pair_elements(
    a_ptr, b_ptr, labels_ptr, weight_ptr, grad_ptr, stats_ptr, value_ptr, grad_a_ptr, grad_b_ptr,
    next_ptr, rows, width, classes, chunks, groups, group, a_row, a_plane, b_row, b_plane,
    weight_stride, grad_stride,
    option0, option1, option2, scale, mix,
    TERMS: tl.constexpr, NEXT: tl.constexpr, LOSS: tl.constexpr, PLANES: tl.constexpr,
    TOTAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Value, gradients and the next block's input of a tile in one pass.

    value is [programs] partial sums if TOTAL, else [rows, chunks]; `scale` multiplies gradients.
    """
    program = tl.program_id(0)
    chunk = program % chunks
    row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    inside = row < rows
    source, exists = message_rows(labels_ptr, row, inside, classes)
    mask = inside[:, None] & (column < width)[None, :]
    b_mask = exists[:, None] & (column < width)[None, :]
    a_at = a_ptr + (row * a_row)[:, None] + column[None, :]
    b_at = b_ptr + (source * b_row)[:, None] + column[None, :]
    a = tl.load(a_at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_at, mask=b_mask, other=float("nan")).to(tl.float32)
    if stats_ptr is not None:
        units = tl.cast(rows, tl.int64) * groups
        max_a, inverse_z, anchor, centre, first, second, inverse_zr = group_stats(
            stats_ptr, units, row, column, mask, groups, group
        )
        grad_a, grad_b = TERMS(
            a, b, option0, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS
        )
        if next_ptr is not None:
            mean = NEXT(
                a, b, option0, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix
            )
    elif PLANES == 1:
        value, grad_a, grad_b = TERMS(a, b, option0, option1, option2, LOSS)
        if next_ptr is not None:
            mean = NEXT(a, b, option0, option1, option2, mix)
    else:
        a2 = tl.load(a_at + a_plane, mask=mask, other=0.0).to(tl.float32)
        b2 = tl.load(b_at + b_plane, mask=b_mask, other=float("nan")).to(tl.float32)
        value, grad_a, grad_a2, grad_b, grad_b2 = TERMS(
            a, a2, b, b2, option0, option1, option2, LOSS
        )
        if next_ptr is not None:
            mean = NEXT(a, a2, b, b2, option0, option1, option2, mix)
    if next_ptr is not None:
        store_next(next_ptr + (row * width)[:, None] + column[None, :], mean, mask)

    factor = row_factor(weight_ptr, weight_stride, row, inside)
    if value_ptr is not None:
        per_row = tl.sum(tl.where(mask, value, 0.0), 1) * factor
        if TOTAL:
            tl.store(value_ptr + program, tl.sum(tl.where(inside, per_row, 0.0), 0))
        else:
            tl.store(value_ptr + row * chunks + chunk, per_row, mask=inside)

    factor = factor * scale
    if grad_ptr is not None:
        factor = factor * tl.load(grad_ptr + row * grad_stride, mask=inside, other=0.0)
    at = (row * (PLANES * width))[:, None] + column[None, :]
    factor = factor[:, None]
    if grad_a_ptr is not None:
        tl.store(grad_a_ptr + at, grad_a * factor, mask=mask)
        if PLANES == 2:
            tl.store(grad_a_ptr + at + width, grad_a2 * factor, mask=mask)
    if grad_b_ptr is not None:
        tl.store(grad_b_ptr + at, grad_b * factor, mask=mask)
        if PLANES == 2:
            tl.store(grad_b_ptr + at + width, grad_b2 * factor, mask=mask)


@triton.jit(
    do_not_specialize=["rows", "classes", "parts", "groups", "weight_stride", "grad_stride"]
)
def table_gradient(
    a_ptr, table_ptr, order_ptr, start_ptr, weight_ptr, grad_ptr, stats_ptr, out_ptr,
    rows, width, classes, parts, groups, group, a_row, a_plane, b_row, b_plane,
    weight_stride, grad_stride,
    option0, option1, option2, scale,
    TERMS: tl.constexpr, LOSS: tl.constexpr, PLANES: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of a class table: every program walks over one section of one class's rows.

    `order` lists the rows sorted by label, `start[c]` where class c begins in it;
    out is [parts, classes, PLANES, width] float32.
    """
    chunks = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0)
    column = (program % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    label = (program // chunks % classes).to(tl.int64)
    part = (program // chunks // classes).to(tl.int64)
    begin, end = section(start_ptr, label, part, parts)
    lane = tl.arange(0, ROWS)
    wide = (column < width)[None, :]
    b_at = table_ptr + label * b_row + column[None, :]
    b = tl.load(b_at, mask=wide, other=0.0).to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    if PLANES == 2:
        b2 = tl.load(b_at + b_plane, mask=wide, other=0.0).to(tl.float32)
        total2 = tl.zeros([ROWS, COLUMNS], tl.float32)
    for position in range(begin, end, ROWS):
        inside = position + lane < end
        row = tl.load(order_ptr + position + lane, mask=inside, other=0)
        factor = row_factor(weight_ptr, weight_stride, row, inside) * scale
        if grad_ptr is not None:
            factor = factor * tl.load(grad_ptr + row * grad_stride, mask=inside, other=0.0)
        factor = factor[:, None]
        mask = inside[:, None] & wide
        a_at = a_ptr + (row * a_row)[:, None] + column[None, :]
        a = tl.load(a_at, mask=mask, other=0.0).to(tl.float32)
        if stats_ptr is not None:
            units = tl.cast(rows, tl.int64) * groups
            _, grad = grouped(
                TERMS, a, b, stats_ptr, units, row, column, mask, groups, group, option0, LOSS
            )
        elif PLANES == 1:
            _, _, grad = TERMS(a, b, option0, option1, option2, LOSS)
        else:
            a2 = tl.load(a_at + a_plane, mask=mask, other=0.0).to(tl.float32)
            _, _, _, grad, grad2 = TERMS(a, a2, b, b2, option0, option1, option2, LOSS)
            total2 += tl.where(mask, grad2 * factor, 0.0)
        total += tl.where(mask, grad * factor, 0.0)
    out_at = out_ptr + (part * classes + label) * (PLANES * width) + column
    tl.store(out_at, tl.sum(total, 0), mask=column < width)
    if PLANES == 2:
        tl.store(out_at + width, tl.sum(total2, 0), mask=column < width)
