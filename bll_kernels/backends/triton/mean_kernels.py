"""Class means: every class's rows are found by their labels and added in their order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "classes"])
def class_counts(labels_ptr, out_ptr, rows, classes, BLOCK: tl.constexpr):
    """out[c] = rows of class c; out[classes] = rows of no class."""
    label = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int64)
    for start in range(0, rows, BLOCK):
        inside = start + lane < rows
        own = tl.load(labels_ptr + start + lane, mask=inside, other=0)
        lost = (own < 0) | (own >= classes)
        hit = tl.where(label == classes, lost, own == label)
        total += (hit & inside).to(tl.int64)
    tl.store(out_ptr + label, tl.sum(total, 0))


@triton.jit(do_not_specialize=["rows", "classes"])
def class_sums(
    x_ptr, labels_ptr, counts_ptr, out_ptr, rows, width, classes, x_row,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[c] = mean of the rows of class c; NaN everywhere if a row has no class."""
    chunks = tl.cdiv(width, COLUMNS)
    column = (tl.program_id(0) % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    label = (tl.program_id(0) // chunks).to(tl.int64)
    wide = column < width
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, rows, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        own = tl.load(labels_ptr + row, mask=row < rows, other=-1) == label
        mask = own[:, None] & wide[None, :]
        x = tl.load(x_ptr + (row * x_row)[:, None] + column[None, :], mask=mask, other=0.0)
        total += x.to(tl.float32)
    count = tl.load(counts_ptr + label).to(tl.float32)
    mean = tl.sum(total, 0) / tl.where(count > 0, count, 1.0)
    lost = tl.load(counts_ptr + classes)
    mean = tl.where(lost > 0, float("nan"), mean)
    tl.store(out_ptr + label * width + column, mean, mask=wide)


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
