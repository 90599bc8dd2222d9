"""The second stage of every reduction: partial sums added in a fixed order."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "weight_stride"])
def sum_partials(
    partial_ptr, weight_ptr, out_ptr, count, weight_stride, scale, BLOCK: tl.constexpr
):
    """out[i] = scale * weight[i] * sum of partial[i, :count]; one program per i."""
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + lane
        part = tl.load(partial_ptr + row * count + at, mask=at < count, other=0.0)
        total += part.to(tl.float64)
    result = tl.sum(total, 0) * scale
    if weight_ptr is not None:
        result *= tl.load(weight_ptr + row * weight_stride)
    tl.store(out_ptr + row, result.to(tl.float32))


@triton.jit(do_not_specialize=["sections"])
def sum_sections(partial_ptr, out_ptr, sections, size, SECTIONS: tl.constexpr, BLOCK: tl.constexpr):
    """out[i] = sum over s of partial[s, i], cast to out's dtype."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([SECTIONS, BLOCK], tl.float32)
    for first in range(0, sections, SECTIONS):
        section = (first + tl.arange(0, SECTIONS)).to(tl.int64)
        mask = (section < sections)[:, None] & (at < size)[None, :]
        part = partial_ptr + (section * size)[:, None] + at[None, :]
        total += tl.load(part, mask=mask, other=0.0)
    tl.store(out_ptr + at, tl.sum(total, 0), mask=at < size)
