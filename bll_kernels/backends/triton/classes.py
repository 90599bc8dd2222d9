"""The class ops: -log softmax over the classes' log-evidence.

Families whose score is a dot product (gaussian, gaussian-precision) go through torch's matmul in
float32; the others through the tiled kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bll_kernels.backends.triton import class_kernels, score_kernels
from bll_kernels.backends.triton.class_problem import LINEAR_FAMILIES, ClassProblem
from bll_kernels.backends.triton.groups import crossed_values
from bll_kernels.backends.triton.launch import (
    CLASS_TILE,
    ceil_div,
    class_table_parts,
    launch,
    score_parts,
    softmax_tile,
)
from bll_kernels.backends.triton.linear import linear_gradients
from bll_kernels.backends.triton.operands import check_dtypes, per_row
from bll_kernels.backends.triton.tables import parts_of, reduce_partials, sum_parts
from bll_kernels.families import FORMULAS


@dataclass(frozen=True)
class Scores:
    """Partial scores: s[i, c] = sign * sum over k of tensor[i, c, k], by strides."""

    tensor: Tensor
    sign: float
    parts: int
    strides: tuple[int, int, int]  # row, class, part


def _scores(problem: ClassProblem) -> Scores:
    pair = problem.pair()
    rows, classes, width = pair.a.count, pair.b.count, pair.a.width
    if problem.family in LINEAR_FAMILIES:
        slope, _ = problem.linear()
        dots = torch.mm(pair.a.tensor.float(), pair.b.tensor.float().t())
        return Scores(dots, slope, 1, (classes, 1, 0))
    if pair.groups:
        values = crossed_values(pair.a, pair.b, pair)
        return Scores(values, -1.0, pair.groups, (classes * pair.groups, pair.groups, 1))
    parts = score_parts(rows, classes, width)
    out = torch.empty((parts, rows, classes), dtype=torch.float32, device=problem.a.device)
    tile = CLASS_TILE
    programs = ceil_div(rows, tile.rows) * ceil_div(classes, tile.classes) * parts
    launch(
        class_kernels.class_scores, programs, tile.warps,
        **problem.kernel_arguments(), out_ptr=out, parts=parts,
    )  # fmt: skip
    return Scores(out, 1.0, parts, (classes, 1, rows * classes))


def _offsets(problem: ClassProblem) -> Tensor:
    """What a class's score has beside the message's evidence and the bias, [classes] float32."""
    table = problem.table.float()
    offset = table.new_zeros((table.shape[0],))
    if problem.family in LINEAR_FAMILIES:
        _, curvature = problem.linear()
        return curvature * table.square().sum(-1) if curvature else offset
    if problem.normalize:
        formulas = FORMULAS[problem.family]
        message, _, _ = formulas.tilt_message(table, problem.tau, problem.tilt)
        norm = formulas.message_log_norm(message, group=problem.group)
        if norm is not None:
            offset = -norm.value
    return offset


def class_loss(
    a: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, normalize_message: bool, tilt: float, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Value and residual weight * (p - onehot); arguments as in the op schema."""
    check_dtypes(a, table)
    problem = ClassProblem(a, table, family, group, tau, normalize_message, tilt)
    batch, classes = problem.batch, table.shape[0]
    rows = batch.numel()
    mean = 1.0 / max(rows, 1) if reduction == "batchmean" else 1.0
    values = torch.empty((rows,), dtype=torch.float32, device=a.device)
    residual = torch.empty((*batch, classes), dtype=torch.float32, device=a.device)
    if rows:
        scores, pair = _scores(problem), problem.pair()
        linear = problem.form is not None
        factor = per_row(weight)
        tile = softmax_tile(classes)
        launch(
            score_kernels.class_softmax, ceil_div(rows, tile.rows), tile.warps,
            score_ptr=scores.tensor, offset_ptr=_offsets(problem),
            bias_ptr=None if bias is None else bias.float().contiguous(),
            a_ptr=pair.a.tensor if linear else None, table_ptr=pair.b.tensor if linear else None,
            width=pair.a.width, a_row=pair.a.row, b_row=pair.b.row, FORM=problem.form,
            labels_ptr=labels.reshape(-1).contiguous(), weight_ptr=factor.tensor,
            value_ptr=values, residual_ptr=residual, rows=rows, classes=classes,
            parts=scores.parts, row_stride=scores.strides[0], class_stride=scores.strides[1],
            part_stride=scores.strides[2], weight_stride=factor.stride, sign=scores.sign,
            scale=mean, ROWS=tile.rows, COLUMNS=tile.columns,
        )  # fmt: skip
    if reduction == "none":
        return values.reshape(batch), residual
    return reduce_partials(values, 1, rows, mean).reshape(()), residual


def _tiled_gradients(
    problem: ClassProblem, coefficient: Tensor, need_a: bool, need_table: bool
) -> tuple[Tensor | None, Tensor | None]:
    pair, tile = problem.pair(), CLASS_TILE
    rows, classes, width = pair.a.count, pair.b.count, pair.a.width
    norm, score = None, None
    if pair.groups:
        latents = problem.a.float().reshape(rows, pair.groups, problem.group)
        norm = torch.logsumexp(latents, -1)
        score = -crossed_values(pair.a, pair.b, pair)
    arguments = {
        **problem.kernel_arguments(), "residual_ptr": coefficient, "norm_ptr": norm,
        "score_ptr": score, "groups": pair.groups, "group": problem.group,
    }  # fmt: skip
    chunks = ceil_div(width, tile.columns)
    grad_a, grad_table = None, None
    if need_a:
        grad_a = torch.empty(problem.a.shape, dtype=problem.a.dtype, device=problem.a.device)
        programs = ceil_div(rows, tile.rows) * chunks
        launch(class_kernels.class_gradient_a, programs, tile.warps, **arguments, out_ptr=grad_a)
    if need_table:
        parts = class_table_parts(rows, classes, width)
        grad_table = torch.empty_like(problem.table, memory_format=torch.contiguous_format)
        partial = parts_of(grad_table, parts)
        mean = None
        if problem.normalize:
            formulas = FORMULAS[problem.family]
            message, _, slope = formulas.tilt_message(
                problem.table.float(), problem.tau, problem.tilt
            )
            log_norm = formulas.message_log_norm(message, group=problem.group)
            mean = None if log_norm is None else (slope * log_norm.grad).contiguous()
        programs = ceil_div(classes, tile.classes) * chunks * parts
        launch(
            class_kernels.class_gradient_table, programs, tile.warps,
            **arguments, mean_ptr=mean, out_ptr=partial, parts=parts,
        )  # fmt: skip
        sum_parts(partial, grad_table)
    return grad_a, grad_table


def _result(found: Tensor | None, operand: Tensor, wanted: bool) -> Tensor:
    """A gradient in its operand's shape and dtype, 0 where no latents give one; else empty."""
    if found is None:
        return operand.new_zeros(operand.shape if wanted else (0,))
    return found.reshape(operand.shape).to(operand.dtype)


def class_loss_backward(
    grad: Tensor, residual: Tensor, a: Tensor, table: Tensor, family: str, group: int, tau: float,
    normalize_message: bool, tilt: float, need_a: bool, need_table: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients from the residual; arguments as in the op schema."""
    check_dtypes(a, table)
    problem = ClassProblem(a, table, family, group, tau, normalize_message, tilt)
    rows = problem.batch.numel()
    upstream = grad.float().expand(problem.batch).reshape(rows, 1)
    coefficient = (residual.reshape(rows, table.shape[0]) * upstream).contiguous()
    grad_a, grad_table = None, None
    if a.numel() and (need_a or need_table):
        run = linear_gradients if family in LINEAR_FAMILIES else _tiled_gradients
        grad_a, grad_table = run(problem, coefficient, need_a, need_table)
    bias = coefficient.sum(0) if need_bias else residual.new_empty((0,))
    return _result(grad_a, a, need_a), _result(grad_table, table, need_table), bias


def class_loss_value_and_grad(
    a: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, normalize_message: bool, tilt: float, reduction: str,
    need_a: bool, need_table: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Value and the wanted gradients, keeping nothing; arguments as in the op schema."""
    options = (family, group, tau, normalize_message, tilt)
    value, residual = class_loss(a, table, labels, bias, weight, *options, reduction)
    one = residual.new_ones(())
    needs = (need_a, need_table, need_bias)
    return value, *class_loss_backward(one, residual, a, table, *options, *needs)
