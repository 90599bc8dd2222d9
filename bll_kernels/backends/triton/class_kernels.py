"""Class-normalised losses: scores and gradients, tile by tile.

Nothing of size rows x classes x latents exists in memory: a tile [ROWS, CLASSES, COLUMNS] lives in
registers while a program walks over latents (scores), classes (gradient to a) or rows (gradient
to the table). A categorical family gives its slopes from `log_norm` [rows, groups] and `score`
[rows, classes, groups]; other families compute them from both parameters.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["rows", "classes", "parts"])
def class_scores(
    a_ptr, table_ptr, out_ptr,
    rows, width, classes, parts, a_row, a_plane, b_row, b_plane, option0, option1, option2,
    TERMS: tl.constexpr, PLANES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out[part, row, class]: the log-evidence of the part's share of the latents."""
    program = tl.program_id(0)
    class_tiles = tl.cdiv(classes, CLASSES)
    label = ((program % class_tiles) * CLASSES + tl.arange(0, CLASSES)).to(tl.int64)
    part = (program // class_tiles % parts).to(tl.int64)
    row = (program // class_tiles // parts).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, known = row < rows, label < classes
    lane = tl.arange(0, COLUMNS)
    share = tl.cdiv(tl.cdiv(width, COLUMNS), parts) * COLUMNS
    begin = part * share
    end = tl.where(begin + share < width, begin + share, width)
    a_row_at = a_ptr + (row * a_row)[:, None, None]
    b_row_at = table_ptr + (label * b_row)[None, :, None]
    total = tl.zeros([ROWS, CLASSES], tl.float32)
    for start in range(begin, end, COLUMNS):
        column = (start + lane)[None, None, :]
        a_mask = inside[:, None, None] & (column < end)
        b_mask = known[None, :, None] & (column < end)
        a = tl.load(a_row_at + column, mask=a_mask, other=0.0).to(tl.float32)
        b = tl.load(b_row_at + column, mask=b_mask, other=0.0).to(tl.float32)
        if PLANES == 1:
            value, _, _ = TERMS(a, b, option0, option1, option2, "evidence")
        else:
            a2 = tl.load(a_row_at + a_plane + column, mask=a_mask, other=0.0).to(tl.float32)
            b2 = tl.load(b_row_at + b_plane + column, mask=b_mask, other=0.0).to(tl.float32)
            value, _, _, _, _ = TERMS(a, a2, b, b2, option0, option1, option2, "evidence")
        total -= tl.sum(tl.where(a_mask & b_mask, value, 0.0), 2)
    at = out_ptr + ((part * rows + row) * classes)[:, None] + label[None, :]
    tl.store(at, total, mask=inside[:, None] & known[None, :])


@triton.jit
def slopes(
    TERMS: tl.constexpr, a_at, b_at, a_mask, b_mask, a_plane, b_plane,
    norm_ptr, score_ptr, row, label, column, classes, groups, group,
    option0, option1, option2, PLANES: tl.constexpr,
):  # fmt: skip
    """d s / d a and d s / d b of a tile [ROWS, CLASSES, COLUMNS], then those of the second plane.

    With one plane the second pair is the first one again.
    """
    a = tl.load(a_at, mask=a_mask, other=0.0).to(tl.float32)
    b = tl.load(b_at, mask=b_mask, other=0.0).to(tl.float32)
    if norm_ptr is not None:
        part = column // group
        norm = tl.load(norm_ptr + row * groups + part, mask=a_mask, other=0.0)
        at = score_ptr + (row * classes + label) * groups + part
        score = tl.load(at, mask=a_mask & b_mask, other=0.0)
        da, db = TERMS(a, b, option0, norm, score)
        return da, db, da, db
    elif PLANES == 1:
        _, da, db = TERMS(a, b, option0, option1, option2, "evidence")
        return -da, -db, -da, -db
    else:
        a2 = tl.load(a_at + a_plane, mask=a_mask, other=0.0).to(tl.float32)
        b2 = tl.load(b_at + b_plane, mask=b_mask, other=0.0).to(tl.float32)
        _, da, da2, db, db2 = TERMS(a, a2, b, b2, option0, option1, option2, "evidence")
        return -da, -db, -da2, -db2


@triton.jit(do_not_specialize=["rows", "classes", "groups"])
def class_gradient_a(
    a_ptr, table_ptr, residual_ptr, norm_ptr, score_ptr, out_ptr,
    rows, width, classes, groups, group, a_row, a_plane, b_row, b_plane,
    option0, option1, option2,
    TERMS: tl.constexpr, PLANES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient to a: sum over classes of residual * slope."""
    program = tl.program_id(0)
    chunks = tl.cdiv(width, COLUMNS)
    column = (program % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    row = (program // chunks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside, wide = row < rows, column < width
    a_mask = inside[:, None, None] & wide[None, None, :]
    a_at = a_ptr + (row * a_row)[:, None, None] + column[None, None, :]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    total2 = tl.zeros([ROWS, COLUMNS], tl.float32)
    for start in range(0, classes, CLASSES):
        label = (start + tl.arange(0, CLASSES)).to(tl.int64)
        known = label < classes
        at = residual_ptr + (row * classes)[:, None] + label[None, :]
        factor = tl.load(at, mask=inside[:, None] & known[None, :], other=0.0)[:, :, None]
        b_mask = known[None, :, None] & wide[None, None, :]
        b_at = table_ptr + (label * b_row)[None, :, None] + column[None, None, :]
        da, _, da2, _ = slopes(
            TERMS, a_at, b_at, a_mask, b_mask, a_plane, b_plane, norm_ptr, score_ptr,
            row[:, None, None], label[None, :, None], column[None, None, :], classes, groups,
            group, option0, option1, option2, PLANES,
        )  # fmt: skip
        both = a_mask & b_mask
        total += tl.sum(tl.where(both, da * factor, 0.0), 1)
        if PLANES == 2:
            total2 += tl.sum(tl.where(both, da2 * factor, 0.0), 1)
    out_at = out_ptr + (row * (PLANES * width))[:, None] + column[None, :]
    mask = inside[:, None] & wide[None, :]
    tl.store(out_at, total, mask=mask)
    if PLANES == 2:
        tl.store(out_at + width, total2, mask=mask)


@triton.jit(do_not_specialize=["rows", "classes", "groups", "parts"])
def class_gradient_table(
    a_ptr, table_ptr, residual_ptr, norm_ptr, score_ptr, mean_ptr, out_ptr,
    rows, width, classes, groups, group, parts, a_row, a_plane, b_row, b_plane,
    option0, option1, option2,
    TERMS: tl.constexpr, PLANES: tl.constexpr,
    ROWS: tl.constexpr, CLASSES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient to the table: out[part] sums residual * slope over the part's rows.

    mean [classes, width] is the slope of the messages' own log-norm, where scores subtract that.
    """
    program = tl.program_id(0)
    chunks, class_tiles = tl.cdiv(width, COLUMNS), tl.cdiv(classes, CLASSES)
    column = (program % chunks) * COLUMNS + tl.arange(0, COLUMNS)
    label = ((program // chunks % class_tiles) * CLASSES + tl.arange(0, CLASSES)).to(tl.int64)
    part = (program // chunks // class_tiles).to(tl.int64)
    known, wide = label < classes, column < width
    b_mask = known[None, :, None] & wide[None, None, :]
    b_at = table_ptr + (label * b_row)[None, :, None] + column[None, None, :]
    mean = tl.zeros([1, CLASSES, COLUMNS], tl.float32)
    if mean_ptr is not None:
        mean_at = mean_ptr + (label * width)[None, :, None] + column[None, None, :]
        mean = tl.load(mean_at, mask=b_mask, other=0.0)
    share = tl.cdiv(tl.cdiv(rows, ROWS), parts) * ROWS
    begin = part * share
    end = tl.where(begin + share < rows, begin + share, rows)
    total = tl.zeros([CLASSES, COLUMNS], tl.float32)
    total2 = tl.zeros([CLASSES, COLUMNS], tl.float32)
    for start in range(begin, end, ROWS):
        row = (start + tl.arange(0, ROWS)).to(tl.int64)
        inside = row < end
        at = residual_ptr + (row * classes)[:, None] + label[None, :]
        factor = tl.load(at, mask=inside[:, None] & known[None, :], other=0.0)[:, :, None]
        a_mask = inside[:, None, None] & wide[None, None, :]
        a_at = a_ptr + (row * a_row)[:, None, None] + column[None, None, :]
        _, db, _, db2 = slopes(
            TERMS, a_at, b_at, a_mask, b_mask, a_plane, b_plane, norm_ptr, score_ptr,
            row[:, None, None], label[None, :, None], column[None, None, :], classes, groups,
            group, option0, option1, option2, PLANES,
        )  # fmt: skip
        both = a_mask & b_mask
        total += tl.sum(tl.where(both, (db - mean) * factor, 0.0), 0)
        if PLANES == 2:
            total2 += tl.sum(tl.where(both, db2 * factor, 0.0), 0)
    out_at = out_ptr + ((part * classes + label) * (PLANES * width))[:, None] + column[None, :]
    mask = known[:, None] & wide[None, :]
    tl.store(out_at, total, mask=mask)
    if PLANES == 2:
        tl.store(out_at + width, total2, mask=mask)
