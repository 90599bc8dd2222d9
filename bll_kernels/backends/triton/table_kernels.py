"""The gradient of a class table, rows of one class after the other, from one read of the rows.

With it comes what else is wanted of those rows: value, gradient to a, next input.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.backends.triton.pair_kernels import (
    element_terms,
    parameters,
    row_factor,
    store_next,
    store_planes,
    whole_value,
)


@triton.jit
def section(start_ptr, label, part, parts):
    """Where one of the `parts` of a label's rows begins and ends in their order."""
    first = tl.load(start_ptr + label)
    last = tl.load(start_ptr + label + 1)
    share = tl.cdiv(last - first, parts)
    begin = first + part * share
    end = begin + share
    return begin, tl.where(end < last, end, last)


@triton.jit(
    do_not_specialize=["rows", "classes", "owners", "parts", "groups", "weight_stride",
                       "grad_stride"]
)  # fmt: skip
def pair_table(
    a_ptr, b_ptr, order_ptr, start_ptr, weight_ptr, grad_ptr, stats_ptr, value_ptr, grad_a_ptr,
    next_ptr, out_ptr,
    rows, width, classes, owners, parts, groups, group, a_row, a_plane, b_row, b_plane,
    weight_stride, grad_stride,
    option0, option1, option2, scale, mix,
    TERMS: tl.constexpr, NEXT: tl.constexpr, LOSS: tl.constexpr, PLANES: tl.constexpr,
    TOTAL: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Every program walks over one section of one class's rows, for one run of their columns.

    `order` lists the rows sorted by label, `start[c]` where class c begins in it; rows without a
    class are one more where `owners` is classes + 1. out is [parts, classes, PLANES, width]
    float32; value is [programs] partial sums if TOTAL, else [rows, chunks].
    """
    chunks = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0)
    chunk = program % chunks
    column = chunk * COLUMNS + tl.arange(0, COLUMNS)
    label = (program // chunks % owners).to(tl.int64)
    part = (program // chunks // owners).to(tl.int64)
    begin, end = section(start_ptr, label, part, parts)
    lane = tl.arange(0, ROWS)
    wide = (column < width)[None, :]
    own = wide & (label + tl.arange(0, 1) < classes)[:, None]
    b_at = b_ptr + label * b_row + column[None, :]
    b, b2 = parameters(b_at, b_plane, own, float("nan"), PLANES)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total2 = total
    losses = tl.zeros([ROWS], tl.float32)
    for position in range(begin, end, ROWS):
        inside = position + lane < end
        row = tl.load(order_ptr + position + lane, mask=inside, other=0)
        mask = inside[:, None] & wide
        a_at = a_ptr + (row * a_row)[:, None] + column[None, :]
        a, a2 = parameters(a_at, a_plane, mask, 0.0, PLANES)
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
                losses += tl.where(inside, per_row, 0.0)
            else:
                tl.store(value_ptr + row * chunks + chunk, per_row, mask=inside)
        factor = factor * scale
        if grad_ptr is not None:
            factor = factor * tl.load(grad_ptr + row * grad_stride, mask=inside, other=0.0)
        factor = factor[:, None]
        if grad_a_ptr is not None:
            at = (row * (PLANES * width))[:, None] + column[None, :]
            store_planes(grad_a_ptr + at, width, grad_a * factor, grad_a2 * factor, mask, PLANES)
        total += tl.where(mask, grad_b * factor, 0.0)
        if PLANES == 2:
            total2 += tl.where(mask, grad_b2 * factor, 0.0)
    if value_ptr is not None and TOTAL:
        tl.store(value_ptr + program, tl.sum(losses, 0))
    out_at = out_ptr + (part * classes + label) * (PLANES * width) + column[None, :]
    sums, sums2 = tl.sum(total, 0)[None, :], tl.sum(total2, 0)[None, :]
    store_planes(out_at, width, sums, sums2, own, PLANES)
