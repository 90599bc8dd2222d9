"""The pair ops: losses between a row of alpha and a row of beta."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import pair_kernels, reduce_kernels
from bll_kernels.backends.triton.groups import run_group_table, run_groups
from bll_kernels.backends.triton.launch import (
    ELEMENTS,
    ceil_div,
    element_tile,
    group_tile,
    launch,
    sections,
    table_tile,
)
from bll_kernels.backends.triton.operands import as_rows, check_dtypes
from bll_kernels.backends.triton.problem import NextInput, PairProblem, next_arguments
from bll_kernels.backends.triton.tables import parts_of, rows_by_label, sum_parts
from bll_kernels.families import FORMULAS
from bll_kernels.spec import STOPPED_LOSSES


def reduce_partials(partial: Tensor, rows: int, count: int, scale: float) -> Tensor:
    """Sum [rows, count] partial sums to [rows]."""
    out = partial.new_empty((rows,))
    launch(
        reduce_kernels.sum_partials, rows, 4,
        partial_ptr=partial, out_ptr=out, count=count, scale=scale, BLOCK=ELEMENTS,
    )  # fmt: skip
    return out


def finish(problem: PairProblem, partial: Tensor, per_row: int) -> Tensor:
    """Reduce partial values: [rows, per_row] for "none", else one number per program."""
    if problem.reduction != "none":
        return reduce_partials(partial, 1, partial.numel(), problem.mean)
    return partial if per_row == 1 else reduce_partials(partial, problem.a.count, per_row, 1.0)


def elements(
    problem: PairProblem,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
    with_value: bool,
    stats: Tensor | None = None,
    following: NextInput | None = None,
) -> Tensor | None:
    """Run the element kernel; returns the value as [rows] or [1]."""
    a = problem.a
    tile = element_tile(a.width, stats is not None)
    chunks = ceil_div(a.width, tile.columns)
    programs = ceil_div(a.count, tile.rows) * chunks
    total = problem.reduction != "none"
    partial = None
    if with_value:
        size = programs if total else a.count * chunks
        partial = a.tensor.new_empty((size,), dtype=torch.float32)
    launch(
        pair_kernels.pair_elements, programs, tile.warps,
        **problem.shared(), b_ptr=problem.b.tensor, labels_ptr=problem.labels, stats_ptr=stats,
        value_ptr=partial, grad_a_ptr=grad_a, grad_b_ptr=grad_b, chunks=chunks, TOTAL=total,
        NEXT=problem.next_function, **next_arguments(following),
        ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    return None if partial is None else finish(problem, partial, chunks)


def table_elements(
    problem: PairProblem, labels: Tensor, out: Tensor, stats: Tensor | None = None
) -> None:
    """Gradient of a class table: rows sorted by label, each class reduced in a fixed order."""
    a, classes = problem.a, problem.b.count
    tile = table_tile(a.width, stats is not None)
    chunks = ceil_div(a.width, tile.columns)
    parts = sections(a.count, classes * chunks, tile)
    order, start = rows_by_label(labels, classes)
    partial = parts_of(out, parts)
    launch(
        pair_kernels.table_gradient, parts * classes * chunks, tile.warps,
        **problem.shared(), table_ptr=problem.b.tensor, order_ptr=order, start_ptr=start,
        stats_ptr=stats, out_ptr=partial, parts=parts, ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    sum_parts(partial, out)


def independent(
    problem: PairProblem,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
    with_value: bool,
    following: NextInput | None,
) -> Tensor | None:
    """A family of independent latents: one pass, and one more over a class table's rows."""
    dense_b = grad_b if problem.labels is None else None
    value = None
    if with_value or grad_a is not None or dense_b is not None:
        value = elements(problem, grad_a, dense_b, with_value, following=following)
    if grad_b is not None and problem.labels is not None:
        table_elements(problem, problem.labels, grad_b)
    return value


def grouped(
    problem: PairProblem,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
    with_value: bool,
    following: NextInput | None,
) -> Tensor | None:
    """Categorical groups: one pass where they fit a tile, else by statistics."""
    labels = problem.labels
    dense_b = grad_b if labels is None else None
    fits = group_tile(problem.group) is not None
    if fits and labels is not None and grad_b is not None:
        partial = run_group_table(problem, labels, grad_a, grad_b, with_value, following)
        return None if partial is None else finish(problem, partial, problem.groups)
    needs_stats = grad_a is not None or grad_b is not None or following is not None
    partial, stats = run_groups(
        problem, rows=problem.a.count, crossed=False, total=problem.reduction != "none",
        with_value=with_value, with_stats=needs_stats and not fits,
        grad_a=grad_a if fits else None, grad_b=dense_b if fits else None,
        following=following if fits else None,
    )  # fmt: skip
    if not fits and (grad_a is not None or dense_b is not None or following is not None):
        elements(problem, grad_a, dense_b, False, stats, following)
    if grad_b is not None and labels is not None:
        table_elements(problem, labels, grad_b, stats)
    return None if partial is None else finish(problem, partial, problem.groups)


Options = tuple[str, int, float, str, float, str]  # family, group, tau, loss, tilt, reduction


def _run(
    grad: Tensor | None,
    tensors: tuple[Tensor, Tensor, Tensor | None, Tensor | None],
    options: Options,
    *,
    need_value: bool,
    need_a: bool,
    need_b: bool,
    following: NextInput | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    a, b, labels, weight = tensors
    family, _, _, loss, _, reduction = options
    check_dtypes(a, b)
    if labels is not None:
        labels = labels.reshape(-1).contiguous()
    problem = PairProblem(as_rows(a, family), as_rows(b, family), labels, grad, weight, *options)
    shape = a.shape[: a.dim() - problem.planes] if reduction == "none" else torch.Size(())
    learns = need_b and loss not in STOPPED_LOSSES and a.numel() > 0
    grad_a = torch.empty(a.shape if need_a else (0,), dtype=a.dtype, device=a.device)
    fill = torch.empty if learns else torch.zeros
    grad_b = fill(b.shape if need_b else (0,), dtype=b.dtype, device=b.device)
    if a.numel() == 0:
        return torch.zeros(shape, dtype=torch.float32, device=a.device), grad_a, grad_b
    run = grouped if problem.groups else independent
    value = run(
        problem, grad_a if need_a else None, grad_b if learns else None, need_value, following
    )
    return None if value is None else value.reshape(shape), grad_a, grad_b


def pair_loss(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, loss: str, tilt: float, reduction: str,
) -> Tensor:  # fmt: skip
    """Value only; arguments as in the op schema."""
    options = (family, group, tau, loss, tilt, reduction)
    tensors = (a, b, labels, weight)
    value, _, _ = _run(None, tensors, options, need_value=True, need_a=False, need_b=False)
    assert value is not None
    return value


def pair_loss_backward(
    grad: Tensor, a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, loss: str, tilt: float, reduction: str,
    need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients times the upstream gradient; arguments as in the op schema."""
    options = (family, group, tau, loss, tilt, reduction)
    tensors = (a, b, labels, weight)
    _, *grads = _run(grad, tensors, options, need_value=False, need_a=need_a, need_b=need_b)
    return grads[0], grads[1]


def pair_loss_value_and_grad(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, loss: str, tilt: float, reduction: str,
    need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Value and gradients in one pass; arguments as in the op schema."""
    options = (family, group, tau, loss, tilt, reduction)
    tensors = (a, b, labels, weight)
    value, grad_a, grad_b = _run(
        None, tensors, options, need_value=True, need_a=need_a, need_b=need_b
    )
    assert value is not None
    return value, grad_a, grad_b


def pair_loss_next(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, loss: str, tilt: float, reduction: str,
    need_a: bool, need_b: bool, mix: float, next_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Value, gradients and the next block's input in one pass; arguments as in the op schema."""
    check_dtypes(a, b)
    batch = a.shape[: a.dim() - FORMULAS[family].planes]
    following = NextInput(a.new_empty((*batch, a.shape[-1]), dtype=next_dtype), mix)
    options = (family, group, tau, loss, tilt, reduction)
    value, grad_a, grad_b = _run(
        None, (a, b, labels, weight), options,
        need_value=True, need_a=need_a, need_b=need_b, following=following,
    )  # fmt: skip
    assert value is not None
    return value, grad_a, grad_b, following.out
