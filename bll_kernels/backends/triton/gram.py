"""The Gram loss ops."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import gram_kernels
from bll_kernels.backends.triton.launch import (
    ELEMENTS,
    GRAM_TILE,
    ceil_div,
    gram_parts,
    launch,
    power_of_two,
)
from bll_kernels.backends.triton.operands import as_rows, check_dtypes
from bll_kernels.backends.triton.tables import reduce_partials


def _block(width: int) -> int:
    return min(power_of_two(max(width, 1)), ELEMENTS)


def _unit_rows(x: Tensor, center: bool) -> tuple[Tensor, Tensor]:
    """Rows of length one [B, D], and one over their norms [B]."""
    rows = as_rows(x, "gaussian")
    unit = torch.empty((rows.count, rows.width), dtype=torch.float32, device=x.device)
    inverse = torch.empty((rows.count,), dtype=torch.float32, device=x.device)
    if not rows.width:
        return unit, inverse.zero_()
    launch(
        gram_kernels.unit_rows, rows.count, 4,
        x_ptr=rows.tensor, out_ptr=unit, inverse_ptr=inverse, width=rows.width, x_row=rows.row,
        CENTER=center, BLOCK=_block(rows.width),
    )  # fmt: skip
    return unit, inverse


def _factor(grad: Tensor | None, weight: Tensor | None, reduction: str, like: Tensor) -> Tensor:
    """What multiplies every row's gradient: upstream * weight * 1 / rows, [B] float32."""
    factor = torch.ones_like(like) if grad is None else grad.float().expand(like.shape)
    factor = factor if weight is None else factor * weight
    return (factor / max(len(like), 1) if reduction == "batchmean" else factor).contiguous()


class _Gram:
    """Rows and target of one call, as the kernels take them."""

    def __init__(
        self,
        x: Tensor,
        labels: Tensor | None,
        vectors: Tensor | None,
        same: float,
        other: float,
        center: bool,
    ) -> None:
        check_dtypes(x, vectors)
        self.x = x
        self.unit, self.inverse = _unit_rows(x, center)
        target = None if vectors is None else _unit_rows(vectors, center)[0]
        self.rows, self.width = self.unit.shape
        self.arguments = {
            "unit_ptr": self.unit,
            "target_ptr": target,
            "labels_ptr": None if labels is None else labels.contiguous(),
            "rows": self.rows,
            "width": self.width,
            "target_width": 0 if target is None else target.shape[1],
            "same": same,
            "other": other,
            "ROWS": GRAM_TILE.rows,
            "COLUMNS": GRAM_TILE.classes,
            "BLOCK": GRAM_TILE.columns,
        }

    def value(self, weight: Tensor | None, reduction: str) -> Tensor:
        """The loss."""
        tiles = ceil_div(self.rows, GRAM_TILE.classes)
        partial = self.unit.new_empty((self.rows, tiles))
        launch(
            gram_kernels.gram_values, ceil_div(self.rows, GRAM_TILE.rows) * tiles,
            GRAM_TILE.warps, out_ptr=partial, **self.arguments,
        )  # fmt: skip
        values = reduce_partials(partial, self.rows, tiles, 1.0 / max(self.rows, 1))
        values = values if weight is None else values * weight
        if reduction == "none":
            return values
        mean = 1.0 / max(self.rows, 1) if reduction == "batchmean" else 1.0
        return reduce_partials(values, 1, self.rows, mean).reshape(())

    def gradient(self, factor: Tensor) -> Tensor:
        """The gradient to x; `factor` multiplies every row's loss."""
        grad_x = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        if not grad_x.numel():
            return grad_x
        parts = gram_parts(self.rows)
        pull = self.unit.new_empty((parts, self.rows, self.width))
        launch(
            gram_kernels.gram_pulls, ceil_div(self.rows, GRAM_TILE.rows) * parts, GRAM_TILE.warps,
            factor_ptr=factor, out_ptr=pull, parts=parts, scale=2.0 / self.rows, **self.arguments,
        )  # fmt: skip
        launch(
            gram_kernels.gram_project, self.rows, 4,
            pull_ptr=pull, unit_ptr=self.unit, inverse_ptr=self.inverse, out_ptr=grad_x,
            rows=self.rows, width=self.width, parts=parts, BLOCK=_block(self.width),
        )  # fmt: skip
        return grad_x


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
    return _Gram(x, labels, vectors, same, other, center).value(weight, reduction)


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
    gram = _Gram(x, labels, vectors, same, other, center)
    return gram.gradient(_factor(grad, weight, reduction, gram.inverse))


def gram_loss_value_and_grad(
    x: Tensor,
    labels: Tensor | None,
    vectors: Tensor | None,
    weight: Tensor | None,
    same: float,
    other: float,
    center: bool,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Value and gradient to x."""
    gram = _Gram(x, labels, vectors, same, other, center)
    value = gram.value(weight, reduction)
    return value, gram.gradient(_factor(None, weight, reduction, gram.inverse))
