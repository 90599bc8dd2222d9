"""Losses normalised over classes: `class_evidence_loss`, `linear_cross_entropy`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bll_kernels.autograd import ClassLoss
from bll_kernels.backends.selection import chunked_backend
from bll_kernels.families import Family
from bll_kernels.functional import checks, chunked
from bll_kernels.functional.calls import ClassCall, ClassNames, prepare_class
from bll_kernels.functional.pooling import PoolArgument, Pooling
from bll_kernels.ops import op

_NAMES = ClassNames()
_LINEAR_NAMES = ClassNames(a="x", table="weight", weight="sample_weight")


def _chunked(call: ClassCall, reduction: str) -> chunked.LinearLoss | None:
    """The call as one that goes through matmul, where that serves it."""
    family, _, tau, normalize, tilt = call.options
    classes = call.table.shape[0]
    backend = chunked_backend(call.a.device.type, call.a.dtype, family, classes)
    if backend is None:
        return None
    slope, curvature = chunked.linear_scores(family, tau, normalize, tilt)
    chunk = chunked.chunk_rows(call.labels.numel(), classes)
    return chunked.LinearLoss(
        call.a, call.table, call.labels, call.bias, call.weight, slope, curvature, reduction,
        backend, chunk,
    )  # fmt: skip


def _value(call: ClassCall, reduction: str) -> Tensor:
    rows = _chunked(call, reduction)
    if rows is not None:
        return chunked.apply(rows)
    tensors = (call.a, call.table, call.labels, call.bias, call.weight)
    learners = (call.a, call.table, call.bias)
    value: Tensor
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in learners):
        value, _ = call.run(ClassLoss.apply, *tensors, call.backend, *call.options, reduction)
    else:
        value, _ = call.run(op(call.backend, "class_loss"), *tensors, *call.options, reduction)
    return value


@torch.no_grad()
def _value_and_grad(
    call: ClassCall, reduction: str, wrt: Sequence[str], names: tuple[str, str, str], compact: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    a_name, table_name, bias_name = names
    if call.pooling is not None and call.pooling.fused:
        return _pooled_value_and_grad(call, call.pooling, reduction, wrt, names, compact)
    wanted = (a_name in wrt, table_name in wrt, bias_name in wrt)
    rows = _chunked(call, reduction)
    if rows is not None:
        value, grad_a, grad_table, grad_bias = chunked.value_and_grad(rows, *wanted)
    else:
        value, grad_a, grad_table, grad_bias = call.run(
            op(call.backend, "class_loss_value_and_grad"),
            call.a, call.table, call.labels, call.bias, call.weight, *call.options, reduction,
            *wanted,
        )  # fmt: skip
    grads = {}
    if a_name in wrt:
        grads[a_name] = call.restore_a(grad_a, compact)
    if table_name in wrt:
        grads[table_name] = grad_table.to(call.given_table.dtype)
    if bias_name in wrt and call.bias is not None:
        grads[bias_name] = grad_bias.to(call.bias.dtype)
    return value, tuple(grads[name] for name in wrt)


def _pooled_value_and_grad(
    call: ClassCall,
    pooling: Pooling,
    reduction: str,
    wrt: Sequence[str],
    names: tuple[str, str, str],
    compact: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The same on a map that the loss's kernel pools itself."""
    family, _, *options = call.options
    value, *found = op(call.backend, "pooled_class_loss_value_and_grad")(
        pooling.source, call.table, call.labels, call.bias, call.weight, family, *options,
        reduction, pooling.grid, names[0] in wrt, compact, names[1] in wrt, names[2] in wrt,
    )  # fmt: skip
    grads = dict(zip(names, found, strict=True))
    if compact and names[0] in wrt:
        grid, source = pooling.grid, pooling.source
        grads[names[0]] = grads[names[0]].reshape(*source.shape[:2], grid, grid)
    if call.bias is not None:
        grads[names[2]] = grads[names[2]].to(call.bias.dtype)
    return value, tuple(grads[name] for name in wrt)


def class_evidence_loss(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    family: str | Family,
    *,
    bias: Tensor | None = None,
    normalize_message: bool = False,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Class-normalised evidence: -log softmax over classes of s_c = log E_alpha[beta_c] + bias_c.

    The local loss that trains best (docs/method.md section 3). For ``gaussian`` it is a linear
    classifier with weights `table` and a prior |b_c|^2 / 2 on them; with `normalize_message`
    exactly a linear classifier.

    Args:
        a: parameters of alpha, [*batch, D] ([*batch, 2, D] for ``gaussian-diagonal``).
        table: message parameters of every class, [classes, (2,) D].
        labels: integer class labels [*batch].
        family: name or `Family`.
        bias: [classes], added to the scores.
        normalize_message: subtract A(b_c), so that beta_c is a density over z.
        pool: None, or (kind, g) to pool a map first.
        tilt: power of beta.
        weight: constant factor per row, [*batch].
        reduction: none, sum or batchmean.

    Returns:
        The loss: [*batch] for ``"none"``, else 0-dim.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    call = prepare_class(
        a, table, labels, family, bias, normalize_message, pool, tilt, weight, _NAMES
    )
    return _value(call, reduction)


def class_evidence_loss_value_and_grad(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    family: str | Family,
    *,
    bias: Tensor | None = None,
    normalize_message: bool = False,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`class_evidence_loss` and its gradients, keeping no graph.

    Args:
        a: as in `class_evidence_loss`, like every argument up to `reduction`.
        table: see there.
        labels: see there.
        family: see there.
        bias: see there.
        normalize_message: see there.
        pool: see there.
        tilt: see there.
        weight: see there.
        reduction: see there.
        wrt: which gradients, of ``"a"``, ``"table"`` and ``"bias"``.
        compact_grad: with mean pooling, return the gradient of the cells [B, C, g, g].

    Returns:
        The value and the gradients in the order of `wrt`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    checks.check_wrt(wrt, ("a", "table", "bias"), pool, compact_grad)
    checks.check_bias_wanted(wrt, bias)
    call = prepare_class(
        a,
        table,
        labels,
        family,
        bias,
        normalize_message,
        pool,
        tilt,
        weight,
        _NAMES,
        fuse=True,
    )
    return _value_and_grad(call, reduction, wrt, ("a", "table", "bias"), compact_grad)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    pool: PoolArgument = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Cross-entropy of the linear read-out x W^T + bias; the logits are not kept.

    Args:
        x: features [*batch, D], or a map [B, C, H, W] with `pool`.
        weight: read-out weights [classes, D].
        labels: integer class labels [*batch].
        bias: [classes].
        pool: None, or (kind, g) to pool a map first.
        sample_weight: constant factor per row, [*batch].
        reduction: none, sum or batchmean.

    Returns:
        The loss: [*batch] for ``"none"``, else 0-dim.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    call = prepare_class(
        x, weight, labels, "gaussian", bias, True, pool, 1.0, sample_weight, _LINEAR_NAMES
    )
    return _value(call, reduction)


def linear_cross_entropy_value_and_grad(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    pool: PoolArgument = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("x",),
    compact_grad: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`linear_cross_entropy` and its gradients, keeping no graph.

    Args:
        x: as in `linear_cross_entropy`, like every argument up to `reduction`.
        weight: see there.
        labels: see there.
        bias: see there.
        pool: see there.
        sample_weight: see there.
        reduction: see there.
        wrt: which gradients, of ``"x"``, ``"weight"`` and ``"bias"``.
        compact_grad: with mean pooling, return the gradient of the cells [B, C, g, g].

    Returns:
        The value and the gradients in the order of `wrt`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    checks.check_wrt(wrt, ("x", "weight", "bias"), pool, compact_grad)
    checks.check_bias_wanted(wrt, bias)
    call = prepare_class(
        x,
        weight,
        labels,
        "gaussian",
        bias,
        True,
        pool,
        1.0,
        sample_weight,
        _LINEAR_NAMES,
        fuse=True,
    )
    return _value_and_grad(call, reduction, wrt, ("x", "weight", "bias"), compact_grad)
