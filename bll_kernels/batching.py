"""The package's ops under `torch.func.vmap`.

A class loss whose scores are linear in the latents is written in ATen operations, which vmap turns
into batched matrix products. Every other op is called once for each member, in turn.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from bll_kernels.backends.selection import LINEAR_FAMILIES
from bll_kernels.functional.chunked import linear_scores
from bll_kernels.ops import BACKENDS
from bll_kernels.schemas import SCHEMAS
from bll_kernels.spec import accumulate_dtype


def is_linear(
    a: Any, table: Any, labels: Any, bias: Any, weight: Any, family: str, *options: Any
) -> bool:
    """Whether `linear_class_loss` serves a call of `class_loss_value_and_grad`."""
    return family in LINEAR_FAMILIES and options[4] in ("sum", "batchmean")


def linear_class_loss(
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
    """`class_loss_value_and_grad` of a family with linear scores, in ATen operations.

    Args and results are those of the op (`bll_kernels.schemas`); gradients that are not wanted are
    empty. Reductions "sum" and "batchmean" only.
    """
    slope, curvature = linear_scores(family, tau, normalize_message, tilt)
    dtype = accumulate_dtype(a.dtype)
    rows, messages = a.reshape(-1, a.shape[-1]).to(dtype), table.to(dtype)
    given = labels.reshape(-1)
    scale = 1.0 / max(1, len(given)) if reduction == "batchmean" else 1.0
    scores = slope * (rows @ messages.t())
    if curvature:
        scores = scores + curvature * messages.square().sum(1)
    if bias is not None:
        scores = scores + bias
    top = scores.amax(1, keepdim=True)
    powers = (scores - top).exp_()
    total = powers.sum(1, keepdim=True)
    losses = (total.log() + top - scores.gather(1, given[:, None]))[:, 0]
    classes = torch.arange(table.shape[0], device=a.device)
    slopes = powers / total - (given[:, None] == classes).to(dtype)
    if weight is not None:
        factor = weight.reshape(-1)
        # A row of weight 0 counts for nothing, whatever it holds.
        slopes = torch.where(factor[:, None] == 0, 0.0, slopes * factor[:, None])
        losses = torch.where(factor == 0, 0.0, losses * factor)
    slopes = slopes * scale
    nothing = losses.new_empty((0,))
    totals = slopes.sum(0) if need_bias or (need_table and curvature) else nothing
    grad_a, grad_table = nothing.to(a.dtype), nothing.to(table.dtype)
    if need_a:
        grad_a = (slope * (slopes @ messages)).reshape(a.shape).to(a.dtype)
    if need_table:
        grad_table = slope * (slopes.t() @ rows)
        if curvature:
            grad_table = grad_table + (2 * curvature * totals)[:, None] * messages
        grad_table = grad_table.to(table.dtype)
    value = losses.mean() if reduction == "batchmean" and len(given) else losses.sum()
    return value, grad_a, grad_table, totals if need_bias else nothing


@cache
def register() -> None:
    """Let vmap call every op that writes nothing once for each member."""
    for backend in BACKENDS:
        for name, schema in SCHEMAS.items():
            if "!" not in schema:
                op = getattr(getattr(torch.ops, f"bll_{backend}"), name).default
                torch.library.register_vmap(f"bll_{backend}::{name}", _each(op))


def _each(op: Callable[..., Any]) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> Any:
        found = [
            op(
                *(
                    argument if dim is None else argument.select(dim, member)
                    for argument, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for member in range(info.batch_size)
        ]
        if isinstance(found[0], Tensor):
            return torch.stack(found), 0
        return tuple(map(torch.stack, zip(*found, strict=True))), (0,) * len(found[0])

    return rule
