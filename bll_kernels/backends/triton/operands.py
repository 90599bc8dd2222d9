"""Tensors as the kernels take them: rows of latents with strides, per-row factors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from bll_kernels.families import FORMULAS


@dataclass(frozen=True)
class Rows:
    """A tensor [*batch, (2,) D] seen as rows.

    Attributes:
        tensor: what owns the memory the kernel reads.
        count: number of rows.
        width: latents per row, D.
        row: elements from one row to the next.
        plane: elements from a latent's first parameter to its second; 0 where it has one.
    """

    tensor: Tensor
    count: int
    width: int
    row: int
    plane: int


def as_rows(x: Tensor, family: str) -> Rows:
    """View `x` as rows; copied only where no single stride leads from row to row."""
    planes = FORMULAS[family].planes
    batch, inner = x.shape[: x.dim() - planes], x.shape[x.dim() - planes :]
    count, width = math.prod(batch), inner[-1]
    flat = x.reshape(count, *inner) if x.numel() else x.new_empty((count, *inner))
    if width > 1 and flat.stride(-1) != 1:
        flat = flat.contiguous()
    return Rows(flat, count, width, flat.stride(0), flat.stride(1) if planes == 2 else 0)


@dataclass(frozen=True)
class Factor:
    """One float32 per row, or one for all rows, read through a device pointer."""

    tensor: Tensor | None
    stride: int


def per_row(x: Tensor | None) -> Factor:
    """The factors of a [*batch] or 0-dim tensor; none for None."""
    if x is None:
        return Factor(None, 0)
    flat = x.to(torch.float32).reshape(-1)
    return Factor(flat, flat.stride(0) if x.dim() else 0)


def check_dtypes(*tensors: Tensor | None) -> None:
    """Float64 has no kernels here; a request for it must not quietly lose digits.

    Raises:
        TypeError: a tensor is float64.
    """
    if any(x is not None and x.dtype == torch.float64 for x in tensors):
        raise TypeError(
            "dtype: expected float32, bfloat16 or float16 for the triton backend, got "
            "torch.float64 (the native and reference backends take it)"
        )
