"""Launching the row kernels: categorical groups in tiles, or in sweeps where they are longer."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import group_kernels
from bll_kernels.backends.triton.launch import SWEEP, ceil_div, group_tile, launch, sections
from bll_kernels.backends.triton.operands import Rows, per_row
from bll_kernels.backends.triton.problem import NextInput, PairProblem, next_arguments
from bll_kernels.backends.triton.tables import parts_of, rows_by_label, sum_parts


def run_groups(
    problem: PairProblem,
    *,
    rows: int,
    crossed: bool,
    total: bool,
    with_value: bool,
    with_stats: bool,
    grad_a: Tensor | None = None,
    grad_b: Tensor | None = None,
    following: NextInput | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Run the row kernel that fits the group.

    Args:
        problem: operands and options.
        rows: rows of the problem; for a crossed one all pairs of a row of a and a row of b.
        crossed: pair every row of a with every row of b.
        total: one partial sum per program instead of one value per unit.
        with_value: compute the values.
        with_stats: store the statistics, which groups longer than a tile need for gradients.
        grad_a: where to store the gradient to a, if the group fits a tile.
        grad_b: where to store the gradient to a dense b, likewise.
        following: the next block's input, likewise.

    Returns:
        Partial values, [programs] or [rows * groups], and statistics [7, rows * groups].
    """
    a, b = problem.a, problem.b
    units = rows * problem.groups
    tile = group_tile(problem.group)
    programs = units if tile is None else ceil_div(units, tile.rows)
    value, stats = None, None
    if with_value:
        size = programs if total else units
        value = torch.empty((size,), dtype=torch.float32, device=a.tensor.device)
    if with_stats:
        stats = torch.empty((7, units), dtype=torch.float32, device=a.tensor.device)
    weight, grad = per_row(problem.weight), per_row(problem.grad)
    shared = {
        "a_ptr": a.tensor,
        "b_ptr": b.tensor,
        "labels_ptr": problem.labels,
        "weight_ptr": weight.tensor,
        "value_ptr": value,
        "units": units,
        "classes": b.count,
        "groups": problem.groups,
        "group": problem.group,
        "a_row": a.row,
        "b_row": b.row,
        "weight_stride": weight.stride,
        "tilt": problem.tilt,
        "LOSS": problem.loss,
        "TOTAL": total,
        "CROSSED": crossed,
    }
    if tile is None:
        launch(
            group_kernels.group_sweeps, programs, SWEEP.warps,
            **shared, stats_ptr=stats, COLUMNS=SWEEP.columns,
        )  # fmt: skip
        return value, stats
    launch(
        group_kernels.group_tiles, programs, tile.warps,
        **shared, grad_ptr=grad.tensor, grad_stride=grad.stride, grad_a_ptr=grad_a,
        grad_b_ptr=grad_b, width=a.width, scale=problem.mean, **next_arguments(following),
        ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    return value, stats


def run_group_table(
    problem: PairProblem,
    labels: Tensor,
    grad_a: Tensor | None,
    grad_b: Tensor,
    with_value: bool,
    following: NextInput | None,
) -> Tensor | None:
    """Groups that fit a tile, rows of one class after the other: everything from one read.

    Args:
        problem: operands and options; b is a class table.
        labels: row of the table for every row of a, [rows] int64.
        grad_a: where to store the gradient to a, if it is wanted.
        grad_b: where to store the gradient to the table.
        with_value: compute the values.
        following: the next block's input, if it is wanted.

    Returns:
        Partial values, [programs] or [rows * groups].
    """
    a, b = problem.a, problem.b
    tile = group_tile(problem.group, table=True)
    assert tile is not None
    owners = (b.count + 1) * problem.groups  # rows without a class have outputs too
    parts = sections(a.count, b.count + 1, problem.groups, tile)
    order, start = rows_by_label(labels, b.count)
    total = problem.adds_programs(problem.groups)
    value = None
    if with_value:
        size = parts * owners if total else a.count * problem.groups
        value = torch.empty((size,), dtype=torch.float32, device=a.tensor.device)
    weight, grad = per_row(problem.weight), per_row(problem.grad)
    partial = parts_of(grad_b, parts)
    launch(
        group_kernels.group_table, parts * owners, tile.warps,
        a_ptr=a.tensor, b_ptr=b.tensor, order_ptr=order, start_ptr=start,
        weight_ptr=weight.tensor, grad_ptr=grad.tensor, value_ptr=value, grad_a_ptr=grad_a,
        out_ptr=partial, width=a.width, classes=b.count, parts=parts, groups=problem.groups,
        group=problem.group, a_row=a.row, b_row=b.row, weight_stride=weight.stride,
        grad_stride=grad.stride, tilt=problem.tilt, scale=problem.mean,
        **next_arguments(following), LOSS=problem.loss, TOTAL=total, ROWS=tile.rows,
        COLUMNS=tile.columns,
    )  # fmt: skip
    sum_parts(partial, grad_b)
    return value


def crossed_values(a: Rows, b: Rows, problem: PairProblem) -> Tensor:
    """Evidence loss of every group of every pair, [rows of a, rows of b, groups]."""
    rows = a.count * b.count
    value, _ = run_groups(
        problem, rows=rows, crossed=True, total=False, with_value=True, with_stats=False
    )
    assert value is not None
    return value.reshape(a.count, b.count, problem.groups)
