"""The eager reference: every op in plain PyTorch, on any device, built from the family formulas.

It is the package's own yardstick and what runs where nothing is compiled. Signatures are those
of the op schemas in `bll_kernels.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.families import FORMULAS, PairTerms
from bll_kernels.spec import STOPPED_LOSSES, accumulate_dtype

LARGEST_FLOAT8 = torch.finfo(torch.float8_e4m3fn).max
#: Upper bound on the elements of one [rows, classes, latents] temporary.
_CHUNK_ELEMENTS = 1 << 22


def _unwanted(like: Tensor) -> Tensor:
    return like.new_empty((0,))


def reduce_rows(rows: Tensor, reduction: str) -> Tensor:
    """Per-row values as the reduction wants them."""
    if reduction == "none":
        return rows.clone()
    total = rows.sum(dtype=torch.float64 if rows.device.type == "cpu" else None)
    return (total / max(rows.numel(), 1) if reduction == "batchmean" else total).to(rows.dtype)


def row_scale(grad: Tensor | None, weight: Tensor | None, reduction: str, rows: Tensor) -> Tensor:
    """Factor of every row's gradient: upstream * weight * 1/rows."""
    scale = torch.ones_like(rows) if grad is None else grad.to(rows.dtype).expand(rows.shape)
    if weight is not None:
        scale = scale * weight
    return scale / max(rows.numel(), 1) if reduction == "batchmean" else scale


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """Row factors times a gradient of the family's shape."""
    return grad * scale.reshape(scale.shape + (1,) * (grad.dim() - scale.dim()))


def _gather(table: Tensor, labels: Tensor) -> Tensor:
    """Rows of the table by label; unlike indexing, negative labels raise."""
    rows = table.index_select(0, labels.reshape(-1))
    return rows.reshape(*labels.shape, *table.shape[1:])


def _add_rows(rows: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    """Sum `rows` into the table row each one was gathered from, in a fixed order."""
    out = torch.zeros(table.shape, dtype=rows.dtype, device=rows.device)
    index, rows = labels.reshape(-1), rows.reshape(labels.numel(), *table.shape[1:])
    if rows.device.type == "cpu":
        return out.index_add_(0, index, rows)
    return out.index_put_((index,), rows, accumulate=True)  # sorts first: no float atomics


def _message(
    b: Tensor, labels: Tensor | None, family: str, tau: float, tilt: float, dtype: torch.dtype
) -> tuple[Tensor, float, float]:
    """Parameters of every row's tilted message, its tau, and d b'/d b."""
    message = (b if labels is None else _gather(b, labels)).to(dtype)
    return FORMULAS[family].tilt_message(message, tau, tilt)


def _pair_terms(
    a: Tensor,
    b: Tensor,
    labels: Tensor | None,
    family: str,
    group: int,
    tau: float,
    loss: str,
    tilt: float,
) -> tuple[PairTerms, float]:
    """Terms of every row in the accumulate dtype, and d b'/d b of the tilted message."""
    dtype = accumulate_dtype(a.dtype)
    message, tau, slope = _message(b, labels, family, tau, tilt, dtype)
    return FORMULAS[family].pair(a.to(dtype), message, loss, group=group, tau=tau), slope


def pair_loss_value_and_grad(
    a: Tensor,
    b: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    loss: str,
    tilt: float,
    reduction: str,
    need_a: bool,
    need_b: bool,
    grad: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient to a, gradient to b."""
    terms, slope = _pair_terms(a, b, labels, family, group, tau, loss, tilt)
    rows = terms.value if weight is None else terms.value * weight
    scale = row_scale(grad, weight, reduction, terms.value)
    grad_a, grad_b = _unwanted(a), _unwanted(b)
    if need_a:
        grad_a = _scaled(terms.grad_a, scale).to(a.dtype).contiguous()
    if need_b and loss in STOPPED_LOSSES:
        grad_b = torch.zeros(b.shape, dtype=b.dtype, device=b.device)
    elif need_b:
        rows_b = _scaled(terms.grad_b, scale * slope)
        grad_b = rows_b if labels is None else _add_rows(rows_b, labels, b)
        grad_b = grad_b.to(b.dtype).contiguous()
    return reduce_rows(rows, reduction), grad_a, grad_b


def pair_loss(
    a: Tensor,
    b: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    loss: str,
    tilt: float,
    reduction: str,
) -> Tensor:
    """Value only."""
    rows = _pair_terms(a, b, labels, family, group, tau, loss, tilt)[0].value
    return reduce_rows(rows if weight is None else rows * weight, reduction)


def pair_loss_backward(
    grad: Tensor,
    a: Tensor,
    b: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    loss: str,
    tilt: float,
    reduction: str,
    need_a: bool,
    need_b: bool,
) -> tuple[Tensor, Tensor]:
    """Gradients times the upstream gradient."""
    return pair_loss_value_and_grad(
        a, b, labels, weight, family, group, tau, loss, tilt, reduction, need_a, need_b, grad
    )[1:]


def pair_loss_next(
    a: Tensor,
    b: Tensor,
    labels: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    loss: str,
    tilt: float,
    reduction: str,
    need_a: bool,
    need_b: bool,
    mix: float,
    next_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, gradients, and the mean of alpha, of rho (`mix` = 1) or in between."""
    terms = pair_loss_value_and_grad(
        a, b, labels, weight, family, group, tau, loss, tilt, reduction, need_a, need_b
    )
    dtype = accumulate_dtype(a.dtype)
    message, tau, _ = _message(b, labels, family, tau, tilt, dtype)
    alpha, rho = FORMULAS[family].means(a.to(dtype), message, group=group, tau=tau)
    only = {0.0: alpha, 1.0: rho}
    mean = only[mix] if mix in only else (1 - mix) * alpha + mix * rho
    if next_dtype == torch.float8_e4m3fn:
        # It has no infinity; whether its largest number stands in differs between torch versions.
        mean = mean.clamp(-LARGEST_FLOAT8, LARGEST_FLOAT8)
    # Of its own memory and dense, where mean is a view of `a`.
    return (*terms, torch.empty(mean.shape, dtype=next_dtype, device=a.device).copy_(mean))


def _class_chunks(a: Tensor, table: Tensor) -> list[slice]:
    classes = table.shape[0]
    step = max(1, _CHUNK_ELEMENTS // max(a.numel(), 1))
    return [slice(i, min(i + step, classes)) for i in range(0, classes, step)]


def class_loss(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    normalize_message: bool,
    tilt: float,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Value and residual weight * (p - onehot)."""
    dtype = accumulate_dtype(a.dtype)
    formulas = FORMULAS[family]
    batch = a.shape[: a.dim() - formulas.planes]
    latents = a.to(dtype).reshape(batch.numel(), 1, *a.shape[len(batch) :])
    messages, tau, _ = formulas.tilt_message(table.to(dtype), tau, tilt)
    scores = latents.new_zeros((latents.shape[0], table.shape[0]))
    for part in _class_chunks(a, table):
        terms = formulas.pair(latents, messages[None, part], "evidence", group=group, tau=tau)
        scores[:, part] = -terms.value
    norm = formulas.message_log_norm(messages, group=group) if normalize_message else None
    scores = scores if norm is None else scores - norm.value
    scores = scores if bias is None else scores + bias.to(dtype)

    target = labels.reshape(-1, 1)
    rows = torch.logsumexp(scores, -1) - scores.gather(1, target)[:, 0]
    others = torch.softmax(scores, -1).scatter(1, target, 0.0)
    residual = others.scatter(1, target, -others.sum(-1, keepdim=True))
    rows = rows.reshape(batch)
    scale = row_scale(None, weight, reduction, rows)
    residual = _scaled(residual.reshape(*batch, table.shape[0]), scale)
    return reduce_rows(rows if weight is None else rows * weight, reduction), residual


def class_loss_backward(
    grad: Tensor,
    residual: Tensor,
    a: Tensor,
    table: Tensor,
    family: str,
    group: int,
    tau: float,
    normalize_message: bool,
    tilt: float,
    need_a: bool,
    need_table: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to a, table and bias from the residual of the forward pass."""
    dtype = residual.dtype
    formulas = FORMULAS[family]
    batch = residual.shape[:-1]
    coefficient = _scaled(residual, grad.to(dtype).expand(batch)).reshape(
        batch.numel(), table.shape[0]
    )
    latents = a.to(dtype).reshape(batch.numel(), 1, *a.shape[len(batch) :])
    messages, tau, slope = formulas.tilt_message(table.to(dtype), tau, tilt)
    grad_a = torch.zeros_like(latents[:, 0])
    grad_table = torch.zeros_like(messages)
    norm = formulas.message_log_norm(messages, group=group) if normalize_message else None
    for part in _class_chunks(a, table):
        message = messages[None, part]
        terms = formulas.pair(latents, message, "evidence", group=group, tau=tau)
        # s_c is minus the evidence loss.
        grad_a -= _scaled(terms.grad_a, coefficient[:, part]).sum(1)
        grad_b = terms.grad_b
        if norm is not None:
            # mu(a + b) - mu(b) exactly; a row with a latent at infinity, which is no message,
            # takes the difference.
            swapped = formulas.pair(message, latents, "evidence", group=group, tau=tau)
            finite = torch.isfinite(latents).all(-1, keepdim=True)
            grad_b = torch.where(finite, swapped.grad_a, grad_b + norm.grad[part])
        grad_table[part] = -_scaled(grad_b, coefficient[:, part]).sum(0)
    return (
        grad_a.reshape(a.shape).to(a.dtype) if need_a else _unwanted(a),
        (grad_table * slope).to(table.dtype) if need_table else _unwanted(table),
        coefficient.sum(0) if need_bias else _unwanted(residual),
    )


def class_loss_value_and_grad(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    weight: Tensor | None,
    family: str,
    group: int,
    tau: float,
    normalize_message: bool,
    tilt: float,
    reduction: str,
    need_a: bool,
    need_table: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value and the wanted gradients, keeping nothing."""
    value, residual = class_loss(
        a, table, labels, bias, weight, family, group, tau, normalize_message, tilt, reduction
    )
    grads = class_loss_backward(
        torch.ones((), dtype=residual.dtype, device=residual.device),
        residual, a, table, family, group, tau, normalize_message, tilt,
        need_a, need_table, need_bias,
    )  # fmt: skip
    return (value, *grads)
