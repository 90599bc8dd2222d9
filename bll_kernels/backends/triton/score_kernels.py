"""From the scores of classes to losses and residuals, and the gradients of linear scores.

Scores of linear families and their gradients come from matrix products. Those take infinities in
another order than the definition does: what is not finite is computed again, term by term.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.backends.triton.pair_kernels import row_factor
from bll_kernels.families.special_triton import exp_any, log1p_nonnegative, log_positive


@triton.jit
def linear_terms(a, b, slope, FORM: tl.constexpr):
    """What latents add to scores of linear families, where infinities must meet as defined."""
    if FORM == "precision":
        finite = (tl.abs(a) < float("inf")) & (tl.abs(b) < float("inf"))
        # Beside an infinite distance what all classes have alike does not matter.
        terms = slope * tl.where(finite, b * (a - 0.5 * b), -0.5 * (b - a) * (b - a))
    else:
        b = slope * b
        terms = b * (a + 0.5 * b)
        if FORM == "normalized":
            terms -= 0.5 * b * b
    return terms


@triton.jit
def defined_scores(a_ptr, table_ptr, row, label, inside, known, width, a_row, b_row, slope,
                   score, FORM: tl.constexpr):  # fmt: skip
    """The tile of scores by definition, where matrix products and squares are not finite."""
    odd = inside[:, None] & known[None, :] & ~(tl.abs(score) < float("inf"))
    if tl.max(tl.max(odd.to(tl.int32), 1), 0) > 0:
        total = tl.zeros_like(score)
        for column in range(0, width):
            a = tl.load(a_ptr + row * a_row + column, mask=inside, other=0.0).to(tl.float32)
            b_at = table_ptr + label.to(tl.int64) * b_row + column
            b = tl.load(b_at, mask=known, other=0.0).to(tl.float32)
            total += linear_terms(a[:, None], b[None, :], slope, FORM)
        score = tl.where(odd, total, score)
    return score


@triton.jit
def score_tile(
    score_ptr, offset_ptr, bias_ptr, a_ptr, table_ptr, row, label, inside, known, sign, parts,
    row_stride, class_stride, part_stride, width, a_row, b_row, FORM: tl.constexpr,
):  # fmt: skip
    """The finished scores of a tile: parts added in their order, the class's offset and bias."""
    mask = inside[:, None] & known[None, :]
    at = score_ptr + (row * row_stride)[:, None] + (label.to(tl.int64) * class_stride)[None, :]
    score = tl.load(at, mask=mask, other=0.0)
    for part in range(1, parts):
        score += tl.load(at + tl.cast(part, tl.int64) * part_stride, mask=mask, other=0.0)
    offset = tl.load(offset_ptr + label, mask=known, other=0.0)
    score = sign * score + offset[None, :]
    if FORM is not None:
        score = defined_scores(
            a_ptr, table_ptr, row, label, inside, known, width, a_row, b_row, sign, score, FORM
        )
    if bias_ptr is not None:
        score += tl.load(bias_ptr + label, mask=known, other=0.0)[None, :]
    return tl.where(mask, score, float("-inf"))


@triton.jit(
    do_not_specialize=[
        "rows", "classes", "parts", "row_stride", "class_stride", "part_stride", "weight_stride",
        "width", "a_row", "b_row",
    ]
)  # fmt: skip
def class_softmax(
    score_ptr, offset_ptr, bias_ptr, a_ptr, table_ptr, labels_ptr, weight_ptr, value_ptr,
    residual_ptr,
    rows, classes, parts, row_stride, class_stride, part_stride, weight_stride, width, a_row, b_row,
    sign, scale, FORM: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """value[row] = -weight log p_y; residual = weight scale (p - onehot), p_y - 1 by the others.

    FORM names the definition of a linear family's scores, see `linear_terms`; else it is None.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = row < rows
    target = tl.load(labels_ptr + row, mask=inside, other=0)
    exists = (target >= 0) & (target < classes)
    lane = tl.arange(0, COLUMNS)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    own = tl.full([ROWS], float("nan"), tl.float32)
    others = tl.zeros([ROWS], tl.float32)
    for start in range(0, classes, COLUMNS):
        label = start + lane
        known = label < classes
        mask = inside[:, None] & known[None, :]
        score = score_tile(
            score_ptr, offset_ptr, bias_ptr, a_ptr, table_ptr, row, label, inside, known, sign,
            parts, row_stride, class_stride, part_stride, width, a_row, b_row, FORM,
        )  # fmt: skip
        is_target = label[None, :] == target[:, None]
        found = tl.sum(is_target.to(tl.int32), 1) > 0
        own = tl.where(found, tl.sum(tl.where(is_target, score, 0.0), 1), own)
        peak = tl.max(score, 1)
        new_top = tl.where(peak > top, peak, top)
        # No score yet, or every class so far impossible: nothing to rescale.
        old = tl.where(top == new_top, others, others * exp_any(top - new_top))
        old = tl.where(top == float("-inf"), 0.0, old)
        # An infinite score is infinitely likely, and leaves NaN to scores that are NaN.
        shifted = tl.where(score == float("inf"), score, score - new_top[:, None])
        shifted = tl.where(is_target | ~mask, float("-inf"), shifted)
        others = old + tl.sum(exp_any(shifted), 1)
        top = new_top
    own = tl.where(exists, own, float("nan"))
    own_mass = exp_any(own - top)
    all_mass = others + own_mass
    weight = row_factor(weight_ptr, weight_stride, row, inside)
    best = (own == top) & (tl.abs(own) < float("inf"))
    loss = tl.where(best, log1p_nonnegative(others), (top - own) + log_positive(all_mass))
    tl.store(value_ptr + row, loss * weight, mask=inside)
    # Probabilities beside an infinite score are infinity over infinity.
    factor = tl.where(top == float("inf"), float("nan"), weight * scale / all_mass)
    for start in range(0, classes, COLUMNS):
        label = start + lane
        known = label < classes
        mask = inside[:, None] & known[None, :]
        score = score_tile(
            score_ptr, offset_ptr, bias_ptr, a_ptr, table_ptr, row, label, inside, known, sign,
            parts, row_stride, class_stride, part_stride, width, a_row, b_row, FORM,
        )  # fmt: skip
        is_target = label[None, :] == target[:, None]
        mass = tl.where(is_target, -others[:, None], exp_any(score - top[:, None]))
        at = residual_ptr + (row * classes)[:, None] + label[None, :]
        tl.store(at, mass * factor[:, None], mask=mask)


@triton.jit(
    do_not_specialize=["rows", "others", "own_row", "other_row", "row_stride", "other_stride"]
)
def linear_gradient(
    product_ptr, own_ptr, other_ptr, coefficient_ptr, total_ptr, out_ptr,
    rows, width, others, own_row, other_row, row_stride, other_stride, slope, square,
    FORM: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out = slope * product + square * total * own, in out's dtype: rows of a, or of the table.

    product is the sum over the others (classes, or rows of a) of coefficient * other, total that of
    the coefficients. Where FORM is given, what is not finite is summed again by definition.
    """
    program = tl.program_id(0)
    chunks = tl.cdiv(width, COLUMNS)
    column = (program % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, wide = row < rows, column < width
    mask = inside[:, None] & wide[None, :]
    at = (row * width)[:, None] + column[None, :]
    own_at = own_ptr + (row * own_row)[:, None] + column[None, :]
    result = slope * tl.load(product_ptr + at, mask=mask, other=0.0)
    if total_ptr is not None:
        total = square * tl.load(total_ptr + row, mask=inside, other=0.0)
        result += total[:, None] * tl.load(own_at, mask=mask, other=0.0).to(tl.float32)
    if FORM is not None:
        odd = mask & ~(tl.abs(result) < float("inf"))
        if tl.max(tl.max(odd.to(tl.int32), 1), 0) > 0:
            own = tl.load(own_at, mask=mask, other=0.0).to(tl.float32)
            exact = tl.zeros_like(result)
            for index in range(0, others):
                other = tl.cast(index, tl.int64)
                coefficient_at = coefficient_ptr + row * row_stride + other * other_stride
                coefficient = tl.load(coefficient_at, mask=inside, other=0.0)[:, None]
                x = tl.load(other_ptr + other * other_row + column, mask=wide, other=0.0)
                x = x.to(tl.float32)[None, :]
                if FORM == "precision":
                    exact += coefficient * (slope * (x - own))
                else:
                    exact += coefficient * (slope * (x + slope * own))
            result = tl.where(odd, exact, result)
    tl.store(out_ptr + at, result, mask=mask)
