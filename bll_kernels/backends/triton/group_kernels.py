"""The row kernels: one group of categorical latents at a time, in a tile or in a loop over tiles.

A unit is one group of one row: unit = row * groups + k. In a crossed problem the rows are all
pairs of a row of `a` and a row of `b`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from bll_kernels.backends.triton.pair_kernels import (
    message_rows,
    row_factor,
    store_next,
    whole_value,
)
from bll_kernels.backends.triton.table_kernels import section
from bll_kernels.families.categorical_triton import (
    AMPLIFIED,
    group_next,
    group_terms,
    group_value,
    growth,
    origin,
    weighted,
)
from bll_kernels.families.special_triton import exp_any


@triton.jit
def sources(labels_ptr, row, inside, classes, CROSSED: tl.constexpr):
    """Rows of a and b that belong to a row of the problem, and whether b's exists."""
    if CROSSED:
        a_source = row // classes
        b_source = row % classes
        exists = inside
    else:
        a_source = row
        b_source, exists = message_rows(labels_ptr, row, inside, classes)
    return a_source, b_source, exists


@triton.jit
def store_value(value_ptr, unit, value, factor, groups, inside, TOTAL: tl.constexpr):
    """One partial sum per program if TOTAL, else one value per unit."""
    value = tl.where(inside, whole_value(value, factor, groups), 0.0)
    if TOTAL:
        tl.store(value_ptr + tl.program_id(0), tl.sum(value, 0))
    else:
        tl.store(value_ptr + unit, value, mask=inside)


@triton.jit
def tile_statistics(a, b, within, tilt, LOSS: tl.constexpr, ROWS: tl.constexpr):
    """The statistics of every row of a tile, a group each; b may be one row for all."""
    max_a = tl.max(tl.where(within, a, float("-inf")), 1)
    likeliest = within & (a == max_a[:, None])
    anchor = origin(tl.max(tl.where(likeliest, b, float("-inf")), 1))
    message = tilt * (b - anchor[:, None])
    weight = tl.where(within, exp_any(a - max_a[:, None]), 0.0)
    inverse_z = 1.0 / tl.sum(weight, 1)
    centre = tl.sum(tl.where(within, weighted(weight, message), 0.0), 1) * inverse_z
    if LOSS != "reverse_kl" and LOSS != "reverse_kl_full":
        centre = origin(centre)
    c = tl.where(within, message - centre[:, None], 0.0)
    direct = ~((tl.max(c, 1) <= AMPLIFIED) & (tl.min(c, 1) > float("-inf")))
    _, _, rest, gap = growth(c)
    first = tl.sum(weight * rest, 1) * inverse_z
    second = tl.sum(weight * gap, 1) * inverse_z
    inverse_zr = tl.zeros([ROWS], tl.float32)
    if tl.max(direct.to(tl.int32), 0) > 0:
        max_r = tl.max(tl.where(within, a + message, float("-inf")), 1)
        posterior = tl.where(within, exp_any(a + message - max_r[:, None]), 0.0)
        inverse = 1.0 / tl.sum(posterior, 1)
        first = tl.where(direct, max_r, first)
        second = tl.where(direct, tl.sum(weighted(posterior, c), 1) * inverse, second)
        inverse_zr = tl.where(direct, inverse, inverse_zr)
    return max_a, inverse_z, anchor, centre, first, second, inverse_zr


@triton.jit
def store_results(
    a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix, row, at, inside,
    mask, factor, scale, grad_ptr, grad_stride, grad_a_ptr, next_ptr, LOSS: tl.constexpr,
):  # fmt: skip
    """Store what is wanted of a tile's next input and gradient to a; returns that to b."""
    max_a, inverse_z, inverse_zr = max_a[:, None], inverse_z[:, None], inverse_zr[:, None]
    anchor, centre = anchor[:, None], centre[:, None]
    first, second = first[:, None], second[:, None]
    if next_ptr is not None:
        mean = group_next(
            a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix
        )
        store_next(next_ptr + at, mean, mask)
    factor = factor * scale
    if grad_ptr is not None:
        factor = factor * tl.load(grad_ptr + row * grad_stride, mask=inside, other=0.0)
    grad_a, grad_b = group_terms(
        a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS
    )
    if grad_a_ptr is not None:
        tl.store(grad_a_ptr + at, grad_a * factor[:, None], mask=mask)
    return grad_b * factor[:, None]


@triton.jit(do_not_specialize=["units", "classes", "groups", "weight_stride", "grad_stride"])
def group_tiles(
    a_ptr, b_ptr, labels_ptr, weight_ptr, grad_ptr, value_ptr, grad_a_ptr, grad_b_ptr,
    next_ptr, units, width, classes, groups, group, a_row, b_row, weight_stride, grad_stride,
    tilt, scale, mix,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, CROSSED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Groups that fit a tile: one read, everything else in registers."""
    unit = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    inside = unit < units
    row = unit // groups
    a_source, b_source, exists = sources(labels_ptr, row, inside, classes, CROSSED)
    lane = tl.arange(0, COLUMNS)
    start = (unit % groups) * group
    within = (lane < group)[None, :]
    mask = inside[:, None] & within
    a_at = a_ptr + (a_source * a_row + start)[:, None] + lane[None, :]
    b_at = b_ptr + (b_source * b_row + start)[:, None] + lane[None, :]
    a = tl.load(a_at, mask=mask, other=0.0).to(tl.float32)
    b = tl.load(b_at, mask=exists[:, None] & within, other=float("nan")).to(tl.float32)

    max_a, inverse_z, anchor, centre, first, second, inverse_zr = tile_statistics(
        a, b, within, tilt, LOSS, ROWS
    )
    factor = row_factor(weight_ptr, weight_stride, row, inside)
    if value_ptr is not None:
        value = group_value(tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS)
        store_value(value_ptr, unit, value, factor, groups, inside, TOTAL)
    at = (row * width + start)[:, None] + lane[None, :]
    grad_b = store_results(
        a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix, row, at,
        inside, mask, factor, scale, grad_ptr, grad_stride, grad_a_ptr, next_ptr, LOSS,
    )  # fmt: skip
    if grad_b_ptr is not None:
        tl.store(grad_b_ptr + at, grad_b, mask=mask)


@triton.jit(do_not_specialize=["units", "classes", "groups", "weight_stride"])
def group_sweeps(
    a_ptr, b_ptr, labels_ptr, weight_ptr, value_ptr, stats_ptr,
    units, classes, groups, group, a_row, b_row, weight_stride, tilt,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, CROSSED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Groups longer than a tile: value and statistics, one program per group, swept in turn."""
    unit = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    inside = unit < units
    row = unit // groups
    a_source, b_source, exists = sources(labels_ptr, row, inside, classes, CROSSED)
    start = (unit % groups) * group
    a_base = a_ptr + a_source * a_row + start
    b_base = b_ptr + b_source * b_row + start
    lanes = tl.arange(0, COLUMNS)

    top = tl.full([COLUMNS], float("-inf"), tl.float32)
    top_b = tl.full([COLUMNS], float("-inf"), tl.float32)
    for begin in range(0, group, COLUMNS):
        within = begin + lanes < group
        a = tl.load(a_base + begin + lanes, mask=within, other=float("-inf")).to(tl.float32)
        b = tl.load(b_base + begin + lanes, mask=within & exists, other=float("nan"))
        b = b.to(tl.float32)
        tied = tl.where((a == top) & ~(b <= top_b), b, top_b)
        top_b = tl.where(within, tl.where(a > top, b, tied), top_b)
        top = tl.where(a > top, a, top)
    max_a = tl.max(top, 0)
    anchor = origin(tl.max(tl.where(top == max_a, top_b, float("-inf")), 0))

    mass = tl.zeros([COLUMNS], tl.float32)
    moment = tl.zeros([COLUMNS], tl.float32)
    for begin in range(0, group, COLUMNS):
        within = begin + lanes < group
        a = tl.load(a_base + begin + lanes, mask=within, other=float("-inf")).to(tl.float32)
        b = tl.load(b_base + begin + lanes, mask=within & exists, other=float("nan"))
        weight = tl.where(within, exp_any(a - max_a), 0.0)
        mass += weight
        message = tilt * (b.to(tl.float32) - anchor)
        moment += tl.where(within, weighted(weight, message), 0.0)
    inverse_z = 1.0 / tl.sum(mass, 0)
    centre = tl.sum(moment, 0) * inverse_z
    if LOSS != "reverse_kl" and LOSS != "reverse_kl_full":
        centre = origin(centre)

    widest = tl.full([COLUMNS], float("-inf"), tl.float32)
    lowest = tl.full([COLUMNS], float("inf"), tl.float32)
    top_r = tl.full([COLUMNS], float("-inf"), tl.float32)
    excess = tl.zeros([COLUMNS], tl.float32)
    gaps = tl.zeros([COLUMNS], tl.float32)
    for begin in range(0, group, COLUMNS):
        within = begin + lanes < group
        a = tl.load(a_base + begin + lanes, mask=within, other=float("-inf")).to(tl.float32)
        b = tl.load(b_base + begin + lanes, mask=within & exists, other=float("nan"))
        message = tilt * (b.to(tl.float32) - anchor)
        c = tl.where(within, message - centre, 0.0)
        weight = tl.where(within, exp_any(a - max_a), 0.0)
        _, _, rest, gap = growth(c)
        excess += weight * rest
        gaps += weight * gap
        widest = tl.where(c > widest, c, widest)
        lowest = tl.where(c < lowest, c, lowest)
        top_r = tl.where(within & (a + message > top_r), a + message, top_r)
    first = tl.sum(excess, 0) * inverse_z
    second = tl.sum(gaps, 0) * inverse_z
    inverse_zr = first * 0.0
    if (tl.max(widest, 0) > AMPLIFIED) | (tl.min(lowest, 0) == float("-inf")):
        max_r = tl.max(top_r, 0)
        mass = tl.zeros([COLUMNS], tl.float32)
        moment = tl.zeros([COLUMNS], tl.float32)
        for begin in range(0, group, COLUMNS):
            within = begin + lanes < group
            a = tl.load(a_base + begin + lanes, mask=within, other=float("-inf")).to(tl.float32)
            b = tl.load(b_base + begin + lanes, mask=within & exists, other=float("nan"))
            message = tilt * (b.to(tl.float32) - anchor)
            posterior = tl.where(within, exp_any(a + message - max_r), 0.0)
            mass += posterior
            moment += tl.where(within, weighted(posterior, message - centre), 0.0)
        inverse_zr = 1.0 / tl.sum(mass, 0)
        first = max_r
        second = tl.sum(moment, 0) * inverse_zr

    if value_ptr is not None:
        factor = row_factor(weight_ptr, weight_stride, row, inside)
        value = group_value(tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS)
        store_value(value_ptr, unit, value, factor, groups, inside, TOTAL)
    if stats_ptr is not None:
        at = tl.program_id(0).to(tl.int64)
        tl.store(stats_ptr + at, max_a)
        tl.store(stats_ptr + units + at, inverse_z)
        tl.store(stats_ptr + 2 * units + at, anchor)
        tl.store(stats_ptr + 3 * units + at, centre)
        tl.store(stats_ptr + 4 * units + at, first)
        tl.store(stats_ptr + 5 * units + at, second)
        tl.store(stats_ptr + 6 * units + at, inverse_zr)


@triton.jit(do_not_specialize=["classes", "parts", "groups", "weight_stride", "grad_stride"])
def group_table(
    a_ptr, b_ptr, order_ptr, start_ptr, weight_ptr, grad_ptr, value_ptr, grad_a_ptr, next_ptr,
    out_ptr, width, classes, parts, groups, group, a_row, b_row, weight_stride, grad_stride,
    tilt, scale, mix,
    LOSS: tl.constexpr, TOTAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradient of a class table and what else is wanted of its rows, from one read.

    Every program walks over one section of one class's rows, for one of their groups in a tile.
    `order` and `start` as in pair_table, with one class more for rows that have none; out is
    [parts, classes, width] float32.
    """
    program = tl.program_id(0)
    member = (program % groups).to(tl.int64)
    label = (program // groups % (classes + 1)).to(tl.int64)
    part = (program // groups // (classes + 1)).to(tl.int64)
    begin, end = section(start_ptr, label, part, parts)
    lane = tl.arange(0, ROWS)
    column = member * group + tl.arange(0, COLUMNS)
    within = (tl.arange(0, COLUMNS) < group)[None, :]
    own = within & (label + tl.arange(0, 1) < classes)[:, None]
    b = tl.load(b_ptr + label * b_row + column[None, :], mask=own, other=float("nan"))
    b = b.to(tl.float32)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    losses = tl.zeros([ROWS], tl.float32)
    for position in range(begin, end, ROWS):
        inside = position + lane < end
        row = tl.load(order_ptr + position + lane, mask=inside, other=0)
        mask = inside[:, None] & within
        a = tl.load(a_ptr + (row * a_row)[:, None] + column[None, :], mask=mask, other=0.0)
        a = a.to(tl.float32)
        max_a, inverse_z, anchor, centre, first, second, inverse_zr = tile_statistics(
            a, b, within, tilt, LOSS, ROWS
        )
        factor = row_factor(weight_ptr, weight_stride, row, inside)
        if value_ptr is not None:
            value = group_value(
                tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, LOSS
            )
            value = tl.where(inside, whole_value(value, factor, groups), 0.0)
            if TOTAL:
                losses += value
            else:
                tl.store(value_ptr + row * groups + member, value, mask=inside)
        at = (row * width)[:, None] + column[None, :]
        grad_b = store_results(
            a, b, tilt, max_a, inverse_z, anchor, centre, first, second, inverse_zr, mix, row, at,
            inside, mask, factor, scale, grad_ptr, grad_stride, grad_a_ptr, next_ptr, LOSS,
        )  # fmt: skip
        total += tl.where(mask, grad_b, 0.0)
    if value_ptr is not None and TOTAL:
        tl.store(value_ptr + program, tl.sum(losses, 0))
    out_at = out_ptr + (part * classes + label) * width + column[None, :]
    tl.store(out_at, tl.sum(total, 0)[None, :], mask=own)
