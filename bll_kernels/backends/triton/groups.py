"""Launching the row kernels: categorical groups in tiles, or in sweeps where they are longer."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import group_kernels
from bll_kernels.backends.triton.launch import SWEEP, ceil_div, group_tile, launch
from bll_kernels.backends.triton.operands import Rows, per_row
from bll_kernels.backends.triton.problem import NextInput, PairProblem, next_arguments


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
        "stats_ptr": stats,
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
        launch(group_kernels.group_sweeps, programs, SWEEP.warps, **shared, COLUMNS=SWEEP.columns)
        return value, stats
    launch(
        group_kernels.group_tiles, programs, tile.warps,
        **shared, grad_ptr=grad.tensor, grad_stride=grad.stride, grad_a_ptr=grad_a,
        grad_b_ptr=grad_b, width=a.width, scale=problem.mean, **next_arguments(following),
        ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    return value, stats


def crossed_values(a: Rows, b: Rows, problem: PairProblem) -> Tensor:
    """Evidence loss of every group of every pair, [rows of a, rows of b, groups]."""
    rows = a.count * b.count
    value, _ = run_groups(
        problem, rows=rows, crossed=True, total=False, with_value=True, with_stats=False
    )
    assert value is not None
    return value.reshape(a.count, b.count, problem.groups)
