"""Softmax cross-entropy of rows of scores: a program per row, read twice, written once."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["classes"])
def softmax_rows(
    scores_ptr, labels_ptr, offset_ptr, weight_ptr, losses_ptr, slopes_ptr, classes,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """losses = weight * loss; slopes, which may be the scores, gets d losses / d scores."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    known = (label >= 0) & (label < classes)
    lane = tl.arange(0, BLOCK)
    first = row * classes
    own = tl.load(scores_ptr + first + label, mask=known, other=float("nan"))
    if offset_ptr is not None:
        own += tl.load(offset_ptr + label, mask=known, other=0.0)
    weight = 1.0
    if weight_ptr is not None:
        weight = tl.load(weight_ptr + row)
    tops = tl.full([BLOCK], float("-inf"), tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for start in range(0, classes, BLOCK):
        column = start + lane
        inside = column < classes
        x = tl.load(scores_ptr + first + column, mask=inside, other=float("-inf"))
        if offset_ptr is not None:
            x += tl.load(offset_ptr + column, mask=inside, other=0.0)
        top = tl.where((x > tops) | (x != x), x, tops)
        # Where nothing but minus infinity was seen, there is nothing to scale.
        sums = tl.where(sums == 0.0, 0.0, sums * tl.exp(tops - top))
        term = tl.where(x > float("-inf"), tl.exp(x - top), 0.0)
        term = tl.where(x != x, x, term)
        sums += tl.where(inside & (column != label), term, 0.0)
        tops = top
    # NaN is not larger: it is asked for apart.
    top = tl.max(tl.where(tops == tops, tops, float("-inf")), 0)
    broken = tl.max((tops != tops).to(tl.int32), 0) > 0
    others = tl.sum(tl.where(sums == 0.0, 0.0, sums * tl.exp(tops - top)), 0)
    top = tl.where(broken, float("nan"), top)
    every = others + tl.exp(own - top)
    # log(1 + others), exact for small ones, where the label is the largest.
    raised = 1.0 + others
    small = tl.where(raised == 1.0, others, tl.log(raised) * (others / (raised - 1.0)))
    small = tl.where(others == float("inf"), others, small)
    loss = tl.where(own == top, small, (top - own) + tl.log(every))
    tl.store(losses_ptr + row, weight * loss)
    # Every thread has read what any of them now writes over.
    tl.debug_barrier()
    factor = weight / every
    for start in range(0, classes, BLOCK):
        column = start + lane
        inside = column < classes
        x = tl.load(scores_ptr + first + column, mask=inside, other=0.0)
        if offset_ptr is not None:
            x += tl.load(offset_ptr + column, mask=inside, other=0.0)
        slope = factor * tl.where(column == label, -others, tl.exp(x - top))
        slope = tl.where(weight == 0.0, 0.0, slope)
        tl.store(slopes_ptr + first + column, slope, mask=inside)
