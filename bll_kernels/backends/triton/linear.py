"""Gradients of class losses whose scores are matrix products (gaussian, gaussian-precision)."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import score_kernels
from bll_kernels.backends.triton.class_problem import ClassProblem
from bll_kernels.backends.triton.launch import ceil_div, element_tile, launch
from bll_kernels.backends.triton.operands import Rows


def _gradient(
    problem: ClassProblem, coefficient: Tensor, own: Rows, other: Rows, out: Tensor, square: float
) -> Tensor:
    """Gradient to `own`, left in `out`.

    Args:
        problem: operands and options.
        coefficient: of the scores of every own row (first) with every other row, float32.
        own: rows of a, or of the table.
        other: rows of the other one.
        out: contiguous, of the shape and dtype that the gradient has.
        square: slope of the scores' own squares, times the row itself.
    """
    slope, _ = problem.linear()
    tile = element_tile(own.width, False)
    programs = ceil_div(own.count, tile.rows) * ceil_div(own.width, tile.columns)
    # Products with the other rows alone have no infinities to cancel.
    form = problem.form if square or problem.form == "precision" else None
    launch(
        score_kernels.linear_gradient, programs, tile.warps,
        product_ptr=torch.mm(coefficient, other.tensor.float()), own_ptr=own.tensor,
        other_ptr=other.tensor, coefficient_ptr=coefficient,
        total_ptr=coefficient.sum(1) if square else None, out_ptr=out, rows=own.count,
        width=own.width, others=other.count, own_row=own.row, other_row=other.row,
        row_stride=coefficient.stride(0), other_stride=coefficient.stride(1), slope=slope,
        square=square, FORM=form, ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    return out


def linear_gradients(
    problem: ClassProblem, coefficient: Tensor, need_a: bool, need_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients to a and to the table from coefficient [rows, classes], contiguous float32."""
    pair = problem.pair()
    grad_a, grad_table = None, None
    if need_a:
        grad_a = torch.empty(problem.a.shape, dtype=problem.a.dtype, device=problem.a.device)
        _gradient(problem, coefficient, pair.a, pair.b, grad_a, 0.0)
    if need_table:
        _, curvature = problem.linear()
        table = problem.table
        grad_table = torch.empty(table.shape, dtype=table.dtype, device=table.device)
        _gradient(problem, coefficient.t(), pair.b, pair.a, grad_table, 2 * curvature)
    return grad_a, grad_table
