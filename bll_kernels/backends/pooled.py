"""A class loss behind mean pooling from a backend's own parts: pool, score, spread.

What backends without a kernel of their own for it run, in four launches.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Results = tuple[Tensor, Tensor, Tensor, Tensor]


def composed(backend: str) -> Callable[..., Results]:
    """The op ``pooled_class_loss_value_and_grad`` made of a backend's other ops."""
    ops = getattr(torch.ops, f"bll_{backend}")

    def pooled_class_loss_value_and_grad(
        x: Tensor,
        table: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        family: str,
        tau: float,
        normalize_message: bool,
        tilt: float,
        reduction: str,
        grid: int,
        need_x: bool,
        compact: bool,
        need_table: bool,
        need_bias: bool,
    ) -> Results:
        latents = ops.grid_pool(x, "mean", grid)
        value, grad, grad_table, grad_bias = ops.class_loss_value_and_grad(
            latents, table.to(latents.dtype), labels, bias, weight, family, 1, tau,
            normalize_message, tilt, reduction, need_x, need_table, need_bias,
        )  # fmt: skip
        if need_x and not compact:
            grad = ops.grid_pool_backward(grad, x, "mean", grid)
        elif not need_x:
            grad = x.new_empty((0,))
        return value, grad, grad_table.to(table.dtype), grad_bias

    return pooled_class_loss_value_and_grad
