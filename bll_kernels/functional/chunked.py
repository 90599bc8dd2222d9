"""Class losses with linear scores and many classes: a chunk of rows at a time through matmul.

Scores of a chunk are one matmul; one kernel turns them into losses and, in the same memory, into
what the gradients' matmuls read. No tensor of all rows and classes exists, so the memory beside
the results is that of one chunk (and of a half-precision table's gradient in float32, where
several chunks add to it).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from bll_kernels.autograd import _once
from bll_kernels.backends.context import without_autocast
from bll_kernels.ops import op
from bll_kernels.positional import PositionalFunction
from bll_kernels.spec import HALF_DTYPES, accumulate_dtype

#: Scores of one chunk, and the rows that a chunk has at least.
CHUNK_SCORES: Final = 1 << 26
LEAST_ROWS: Final = 128


class LinearLoss(NamedTuple):
    """A class loss with scores slope * a . b_c + curvature * |b_c|^2 + bias_c."""

    a: Tensor
    table: Tensor
    labels: Tensor
    bias: Tensor | None
    weight: Tensor | None
    slope: float
    curvature: float
    reduction: str
    backend: str
    chunk: int

    @property
    def dtype(self) -> torch.dtype:
        """Of scores and sums."""
        return accumulate_dtype(self.a.dtype)


def chunk_rows(rows: int, classes: int) -> int:
    """Rows of a chunk: as many as keep its scores within `CHUNK_SCORES`, in whole 128s."""
    fitting = CHUNK_SCORES // max(classes, 1) // LEAST_ROWS * LEAST_ROWS
    return max(1, min(rows, max(LEAST_ROWS, fitting)))


def linear_scores(
    family: str, tau: float, normalize_message: bool, tilt: float
) -> tuple[float, float]:
    """Slope and curvature of a family's scores, up to what all classes share."""
    if family == "gaussian":
        return tilt, 0.0 if normalize_message else 0.5 * tilt * tilt
    precision = tau * tilt
    gain = precision / (1 + precision)
    return gain, -0.5 * gain


def _product(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    """x @ y, accumulated and returned in `dtype`."""
    with without_autocast(x.device.type):
        if x.dtype == y.dtype == dtype:
            return x @ y
        if x.is_cuda and x.dtype == y.dtype and x.dtype in HALF_DTYPES:
            return torch.mm(x, y, out_dtype=dtype)
        return x.to(dtype) @ y.to(dtype)


class _Chunk(NamedTuple):
    rows: slice
    a: Tensor
    losses: Tensor
    slopes: Tensor  # of the losses with respect to the scores, weighted


def _chunks(loss: LinearLoss, gradients: bool) -> Iterator[_Chunk]:
    a = loss.a.reshape(-1, loss.a.shape[-1])
    labels = loss.labels.reshape(-1)
    weight = None if loss.weight is None else loss.weight.reshape(-1)
    offset = None if loss.bias is None else loss.bias.to(loss.dtype)
    if loss.curvature:
        norm = torch.linalg.vector_norm(loss.table, dim=1, dtype=loss.dtype)
        square = loss.curvature * norm.square()
        offset = square if offset is None else offset + square
    # The matmuls of the gradients take both operands in one dtype.
    narrow = loss.table.dtype if gradients and loss.a.is_cuda else loss.dtype
    softmax = op(loss.backend, "softmax_rows")
    for start in range(0, len(a), loss.chunk):
        rows = slice(start, start + loss.chunk)
        part = a[rows]
        scores = _product(part.to(loss.table.dtype), loss.table.t(), loss.dtype)
        if loss.slope != 1:
            scores *= loss.slope
        slopes = scores if narrow == loss.dtype else torch.empty_like(scores, dtype=narrow)
        row_weight = None if weight is None else weight[rows]
        losses = softmax(scores, labels[rows], offset, row_weight, slopes)
        yield _Chunk(rows, part, losses, slopes)


def _reduced(losses: Tensor, loss: LinearLoss) -> Tensor:
    if loss.reduction == "none":
        return losses.reshape(loss.labels.shape)
    return losses.sum() * _scale(loss)


def _scale(loss: LinearLoss) -> float:
    rows = math.prod(loss.labels.shape)
    return 1.0 / rows if loss.reduction == "batchmean" and rows else 1.0


def value(loss: LinearLoss) -> Tensor:
    """The loss alone."""
    parts = [chunk.losses for chunk in _chunks(loss, False)]
    losses = torch.cat(parts) if parts else loss.a.new_empty((0,), dtype=loss.dtype)
    return _reduced(losses, loss)


def value_and_grad(
    loss: LinearLoss, need_a: bool, need_table: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and its gradients to a, table and bias, empty where not wanted."""
    scale, classes = _scale(loss), len(loss.table)
    flat = (math.prod(loss.labels.shape), loss.a.shape[-1])
    losses = loss.a.new_empty(flat[:1], dtype=loss.dtype)
    grad_a = loss.a.new_empty(flat) if need_a else None
    table = loss.table.new_zeros(loss.table.shape, dtype=loss.dtype) if need_table else None
    totals = None
    if need_bias or (need_table and loss.curvature):
        totals = loss.table.new_zeros((classes,), dtype=loss.dtype)
    for chunk in _chunks(loss, True):
        losses[chunk.rows] = chunk.losses
        if grad_a is not None:
            pull = _product(chunk.slopes, loss.table, loss.dtype)
            grad_a[chunk.rows] = pull.mul_(loss.slope * scale)
        if table is not None:
            table += _product(chunk.slopes.t(), chunk.a.to(chunk.slopes.dtype), loss.dtype)
        if totals is not None:
            totals += chunk.slopes.sum(0, dtype=loss.dtype)
    if totals is not None:
        totals *= scale
    if table is not None:
        table *= loss.slope * scale
        if loss.curvature and totals is not None:
            table += (2 * loss.curvature * totals)[:, None] * loss.table
        table = table.to(loss.table.dtype)
    nothing = losses.new_empty((0,))
    return (
        _reduced(losses, loss),
        nothing if grad_a is None else grad_a.reshape(loss.a.shape),
        nothing if table is None else table,
        nothing if totals is None or not need_bias else totals,
    )


def apply(loss: LinearLoss) -> Tensor:
    """The loss, differentiable once."""
    learners = (loss.a, loss.table, loss.bias)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learners):
        result: Tensor = ChunkedLoss.apply(*loss)
        return result
    return value(loss)


class ChunkedLoss(PositionalFunction):
    """The loss with gradients; backward makes the scores again rather than keep them."""

    @staticmethod
    def forward(
        a: Tensor,
        table: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        *options: Any,
    ) -> Tensor:
        """Value; `options` are those of `LinearLoss` from `slope` on."""
        return value(LinearLoss(a, table, labels, bias, weight, *options))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Upstream gradient, as weights of the rows, times the gradient of the value."""
        a, table, labels, bias, weight = ctx.saved_tensors
        upstream = grad.expand(labels.shape)
        weight = upstream if weight is None else weight * upstream
        loss = LinearLoss(a, table, labels, bias, weight.contiguous(), *ctx.options)
        need_a, need_table, _, need_bias, *_ = ctx.needs_input_grad
        _, grad_a, grad_table, grad_bias = value_and_grad(loss, need_a, need_table, need_bias)
        return (
            grad_a if need_a else None,
            grad_table if need_table else None,
            None,
            grad_bias.to(bias.dtype) if need_bias else None,
            *(None,) * (1 + len(ctx.options)),
        )
