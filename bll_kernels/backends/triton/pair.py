"""The pair ops: losses between a row of alpha and a row of beta."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import pair_kernels, table_kernels
from bll_kernels.backends.triton.groups import run_group_table, run_groups
from bll_kernels.backends.triton.launch import (
    ceil_div,
    element_tile,
    group_tile,
    launch,
    sections,
    table_tile,
)
from bll_kernels.backends.triton.operands import as_rows, check_dtypes
from bll_kernels.backends.triton.problem import NextInput, PairProblem
from bll_kernels.backends.triton.table_traffic import row_bytes
from bll_kernels.backends.triton.tables import (
    parts_of,
    reduce_partials,
    rows_by_label,
    sum_parts,
)
from bll_kernels.families import FORMULAS
from bll_kernels.spec import STOPPED_LOSSES


def finish(problem: PairProblem, partial: Tensor, pieces: int) -> Tensor:
    """Reduce partial values: one number per program, or per piece of every row."""
    if problem.adds_programs(pieces):
        return reduce_partials(partial, 1, partial.numel(), problem.mean)
    rows = partial
    if pieces > 1:
        rows = reduce_partials(partial, problem.a.count, pieces, 1.0, problem.weight)
    if problem.reduction == "none":
        return rows
    return reduce_partials(rows, 1, problem.a.count, problem.mean)


def partial_values(problem: PairProblem, programs: int, pieces: int) -> Tensor:
    """Where a kernel leaves what `finish` reduces."""
    size = programs if problem.adds_programs(pieces) else problem.a.count * pieces
    return problem.a.tensor.new_empty((size,), dtype=torch.float32)


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
    partial = partial_values(problem, programs, chunks) if with_value else None
    launch(
        pair_kernels.pair_elements, programs, tile.warps,
        **problem.shared(), b_ptr=problem.b.tensor, labels_ptr=problem.labels, stats_ptr=stats,
        value_ptr=partial, grad_a_ptr=grad_a, grad_b_ptr=grad_b, chunks=chunks,
        TOTAL=problem.adds_programs(chunks), **problem.next_arguments(following),
        ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    return None if partial is None else finish(problem, partial, chunks)


def table_elements(
    problem: PairProblem,
    labels: Tensor,
    grad_b: Tensor,
    grad_a: Tensor | None = None,
    with_value: bool = False,
    stats: Tensor | None = None,
    following: NextInput | None = None,
) -> Tensor | None:
    """Gradient of a class table, and what else is wanted of its rows, from one read of them.

    Rows are sorted by label, each class reduced in a fixed order; returns the value as [rows]
    or [1].
    """
    a, classes = problem.a, problem.b.count
    tile = table_tile(a.width, stats is not None)
    chunks = ceil_div(a.width, tile.columns)
    # Rows without a class add to none, but have outputs too.
    alone = grad_a is None and not with_value and following is None
    owners = classes if alone else classes + 1
    parts = sections(a.count, owners, chunks, tile)
    programs = parts * owners * chunks
    order, start = rows_by_label(labels, classes)
    sums = parts_of(grad_b, parts)
    partial = partial_values(problem, programs, chunks) if with_value else None
    launch(
        table_kernels.pair_table, programs, tile.warps,
        **problem.shared(), b_ptr=problem.b.tensor, order_ptr=order, start_ptr=start,
        stats_ptr=stats, value_ptr=partial, grad_a_ptr=grad_a, out_ptr=sums, owners=owners,
        parts=parts, TOTAL=problem.adds_programs(chunks), **problem.next_arguments(following),
        ROWS=tile.rows, COLUMNS=tile.columns,
    )  # fmt: skip
    sum_parts(sums, grad_b)
    return None if partial is None else finish(problem, partial, chunks)


def independent(
    problem: PairProblem,
    grad_a: Tensor | None,
    grad_b: Tensor | None,
    with_value: bool,
    following: NextInput | None,
) -> Tensor | None:
    """A family of independent latents: one pass, or two over a class table's narrow rows."""
    labels = problem.labels
    if labels is None or grad_b is None:
        if not with_value and grad_a is None and grad_b is None:
            return None
        return elements(problem, grad_a, grad_b, with_value, following=following)
    if row_bytes(problem, grad_a, with_value, following).once():
        return table_elements(problem, labels, grad_b, grad_a, with_value, following=following)
    value = elements(problem, grad_a, None, with_value, following=following)
    table_elements(problem, labels, grad_b)
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
        problem, rows=problem.a.count, crossed=False, total=problem.adds_programs(problem.groups),
        with_value=with_value, with_stats=needs_stats and not fits,
        grad_a=grad_a if fits else None, grad_b=dense_b if fits else None,
        following=following if fits else None,
    )  # fmt: skip
    if stats is not None and labels is not None and grad_b is not None:
        table_elements(problem, labels, grad_b, grad_a, stats=stats, following=following)
    elif stats is not None:
        elements(problem, grad_a, dense_b, False, stats, following)
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
