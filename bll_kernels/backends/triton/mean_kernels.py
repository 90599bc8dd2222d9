"""Class means: rows sorted by label, every class's in parts, added in their order."""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.backends.triton.table_kernels import section


@triton.jit(do_not_specialize=["classes", "parts"])
def class_sums(
    x_ptr, order_ptr, start_ptr, out_ptr, width, classes, parts, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[part, c] = sum of one of the parts of class c's rows, divided by all of their number.

    NaN everywhere if a row has no class. `order` and `start` are as in `pair_table`.
    """
    chunks = tl.cdiv(width, COLUMNS)
    column = (tl.program_id(0) % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    label = (tl.program_id(0) // chunks % classes).to(tl.int64)
    part = (tl.program_id(0) // chunks // classes).to(tl.int64)
    begin, end = section(start_ptr, label, part, parts)
    wide = column < width
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for position in range(begin, end, ROWS):
        inside = position + tl.arange(0, ROWS) < end
        row = tl.load(order_ptr + position + tl.arange(0, ROWS), mask=inside, other=0)
        mask = inside[:, None] & wide[None, :]
        x = tl.load(x_ptr + (row * x_row)[:, None] + column[None, :], mask=mask, other=0.0)
        total += x.to(tl.float32)
    count = (tl.load(start_ptr + label + 1) - tl.load(start_ptr + label)).to(tl.float32)
    share = tl.sum(total, 0) / tl.where(count > 0, count, 1.0)
    lost = tl.load(start_ptr + classes + 1) - tl.load(start_ptr + classes)
    share = tl.where(lost > 0, float("nan"), share)
    tl.store(out_ptr + (part * classes + label) * width + column, share, mask=wide)


@triton.jit(do_not_specialize=["classes"])
def class_spread(grad_ptr, labels_ptr, counts_ptr, out_ptr, width, classes, COLUMNS: tl.constexpr):
    """out[row] = grad[its class] / the class's count; NaN for a row of no class."""
    chunks = tl.cdiv(width, COLUMNS)
    column = (tl.program_id(0) % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    row = (tl.program_id(0) // chunks).to(tl.int64) + tl.arange(0, 1)
    wide = (column < width)[None, :]
    label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < classes)
    count = tl.load(counts_ptr + label, mask=known, other=1).to(tl.float32)[:, None]
    at = (label * width)[:, None] + column[None, :]
    grad = tl.load(grad_ptr + at, mask=wide & known[:, None], other=0.0)
    out = tl.where(known[:, None], grad / count, float("nan"))
    tl.store(out_ptr + (row * width)[:, None] + column[None, :], out, mask=wide)
