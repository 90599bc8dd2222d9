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
def whole_value(value, factor, pieces):
    """The weighted value of a row that is whole; of one of its pieces, as it is.

    A weight multiplies the sum of the pieces: times an infinite one, those of different signs
    would be NaN.
    """
    return tl.where(pieces == 1, value * factor, value)


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
def parameters(at, plane, mask, other, PLANES: tl.constexpr):
    """Both parameters of latents as float32; with one plane the first one again."""
    first = tl.load(at, mask=mask, other=other).to(tl.float32)
    second = first
    if PLANES == 2:
        second = tl.load(at + plane, mask=mask, other=other).to(tl.float32)
    return first, second


@triton.jit
def element_terms(
    a, a2, b, b2, stats_ptr, rows, row, column, mask, groups, group,
    option0, option1, option2, mix,
    TERMS: tl.constexpr, NEXT: tl.constexpr, LOSS: tl.constexpr, PLANES: tl.constexpr,
):  # fmt: skip
    """Value, next input and both planes' gradients to a and b of the elements of a tile.

    A grouped element has no value of its own, and without NEXT there is no next input: zeros.
    With one plane the second gradients are the first ones again.
    """
    value = tl.zeros_like(a)
    mean = value
    if stats_ptr is not None:
        units = tl.cast(rows, tl.int64) * groups
        max_a, inverse_z, anchor, centre, first, second, inverse_zr = group_stats(
            stats_ptr, units, row, column, mask, groups, group
        )
        grad_a, grad_b = TERMS(
            a, b, option0, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS
        )
        grad_a2, grad_b2 = grad_a, grad_b
        if NEXT is not None:
            mean = NEXT(
                a, b, option0, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix
            )
    elif PLANES == 1:
        value, grad_a, grad_b = TERMS(a, b, option0, option1, option2, LOSS)
        grad_a2, grad_b2 = grad_a, grad_b
        if NEXT is not None:
            mean = NEXT(a, b, option0, option1, option2, mix)
    else:
        value, grad_a, grad_a2, grad_b, grad_b2 = TERMS(
            a, a2, b, b2, option0, option1, option2, LOSS
        )
        if NEXT is not None:
            mean = NEXT(a, a2, b, b2, option0, option1, option2, mix)
    return value, mean, grad_a, grad_a2, grad_b, grad_b2


@triton.jit
def store_planes(at, plane, first, second, mask, PLANES: tl.constexpr):
    """Gradients to both parameters of latents."""
    tl.store(at, first, mask=mask)
    if PLANES == 2:
        tl.store(at + plane, second, mask=mask)


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

    value is [programs] partial sums if TOTAL, else [rows, chunks], see `whole_value`; `scale`
    multiplies gradients.
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
    a, a2 = parameters(a_at, a_plane, mask, 0.0, PLANES)
    b, b2 = parameters(b_at, b_plane, b_mask, float("nan"), PLANES)
    value, mean, grad_a, grad_a2, grad_b, grad_b2 = element_terms(
        a, a2, b, b2, stats_ptr, rows, row, column, mask, groups, group,
        option0, option1, option2, mix, TERMS, NEXT, LOSS, PLANES,
    )  # fmt: skip
    if next_ptr is not None:
        store_next(next_ptr + (row * width)[:, None] + column[None, :], mean, mask)

    factor = row_factor(weight_ptr, weight_stride, row, inside)
    if value_ptr is not None:
        per_row = whole_value(tl.sum(tl.where(mask, value, 0.0), 1), factor, chunks)
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
        store_planes(grad_a_ptr + at, width, grad_a * factor, grad_a2 * factor, mask, PLANES)
    if grad_b_ptr is not None:
        store_planes(grad_b_ptr + at, width, grad_b * factor, grad_b2 * factor, mask, PLANES)
