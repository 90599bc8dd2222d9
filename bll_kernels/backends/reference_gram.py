"""Gram loss and class means of the reference backend, a strip of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from bll_kernels.backends.reference import reduce_rows, row_scale
from bll_kernels.spec import accumulate_dtype

#: Upper bound on the elements of one strip of the Gram matrix.
_STRIP_ELEMENTS = 1 << 18


def _unit_rows(x: Tensor, dtype: torch.dtype, center: bool) -> tuple[Tensor, Tensor]:
    """Rows of length one, and what their gradient is divided by, inverted; 0 for rows of zeros."""
    x = x.to(dtype)
    if not x.shape[1]:
        return x, x.new_zeros((x.shape[0], 1))
    if center:
        # Seen from its first element a constant row is exactly zero, however its mean rounds.
        x = x - x[:, :1]
        x = x - x.mean(-1, keepdim=True)
    size = x.abs().amax(-1, keepdim=True)
    zero = size == 0
    scaled = x / torch.where(zero, 1, size)
    norm = scaled.square().sum(-1, keepdim=True).sqrt()
    norm = torch.where(zero, 1, norm)
    return scaled / norm, torch.where(zero, 0, 1 / (norm * size))


def _gaps(
    unit: Tensor, labels: Tensor | None, vectors: Tensor | None, same: float, other: float
) -> Iterator[tuple[slice, Tensor]]:
    """Strips of S - T."""
    step = max(1, _STRIP_ELEMENTS // max(unit.shape[0], 1))
    for start in range(0, unit.shape[0], step):
        rows = slice(start, start + step)
        gap = unit[rows] @ unit.t()
        if labels is not None:
            equal = labels[rows, None] == labels
            gap = gap - torch.where(equal, gap.new_full((), same), gap.new_full((), other))
        if vectors is not None:
            gap = gap - vectors[rows] @ vectors.t()
        yield rows, gap


def gram_loss_value_and_grad(
    x: Tensor,
    labels: Tensor | None,
    vectors: Tensor | None,
    weight: Tensor | None,
    same: float,
    other: float,
    center: bool,
    reduction: str,
    grad: Tensor | None = None,
    need_grad: bool = True,
) -> tuple[Tensor, Tensor]:
    """Value and gradient to x."""
    dtype, count = accumulate_dtype(x.dtype), max(x.shape[0], 1)
    unit, inverse = _unit_rows(x, dtype, center)
    target = None if vectors is None else _unit_rows(vectors, dtype, center)[0]
    values = unit.new_zeros((x.shape[0],))
    factor = row_scale(grad, weight, reduction, values)
    grad_x = torch.empty(x.shape if need_grad else (0,), dtype=x.dtype, device=x.device)
    for rows, gap in _gaps(unit, labels, target, same, other):
        values[rows] = gap.square().sum(-1) / count
        if need_grad:
            pull = ((factor[rows, None] + factor) * gap * (2 / count)) @ unit
            along = (pull * unit[rows]).sum(-1, keepdim=True)
            slope = (pull - along * unit[rows]) * inverse[rows]
            grad_x[rows] = torch.where(inverse[rows] == 0, 0, slope).to(x.dtype)
    return reduce_rows(values if weight is None else values * weight, reduction), grad_x


def gram_loss(
    x: Tensor,
    labels: Tensor | None,
    vectors: Tensor | None,
    weight: Tensor | None,
    same: float,
    other: float,
    center: bool,
    reduction: str,
) -> Tensor:
    """Value only."""
    return gram_loss_value_and_grad(
        x, labels, vectors, weight, same, other, center, reduction, need_grad=False
    )[0]


def gram_loss_backward(
    grad: Tensor,
    x: Tensor,
    labels: Tensor | None,
    vectors: Tensor | None,
    weight: Tensor | None,
    same: float,
    other: float,
    center: bool,
    reduction: str,
) -> Tensor:
    """Gradient times the upstream gradient."""
    return gram_loss_value_and_grad(
        x, labels, vectors, weight, same, other, center, reduction, grad
    )[1]


def class_means(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Mean of every class's rows and their number."""
    dtype = accumulate_dtype(x.dtype)
    counts = torch.zeros((classes,), dtype=torch.int64, device=x.device)
    sums = torch.zeros((classes, *x.shape[1:]), dtype=dtype, device=x.device)
    if x.device.type == "cpu":
        counts.index_add_(0, labels, torch.ones_like(labels))
        sums.index_add_(0, labels, x.to(dtype))
    else:  # sorts first: no float atomics
        counts.index_put_((labels,), torch.ones_like(labels), accumulate=True)
        sums.index_put_((labels,), x.to(dtype), accumulate=True)
    size = counts.clamp_min(1).to(dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return sums / size, counts


def class_means_backward(grad: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    """Every row gets its class's gradient divided by the class's count."""
    size = counts.clamp_min(1).to(grad.dtype).reshape(-1, *(1,) * (grad.dim() - 1))
    return (grad / size).index_select(0, labels)
