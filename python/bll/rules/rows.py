"""Rows of a batch on the unit sphere."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_SMALLEST_LENGTH = 1e-8


def unit_rows(rows: Tensor) -> Tensor:
    """Centre every row of [N, D] and divide it by its length, in at least float32."""
    wide = rows if rows.dtype == torch.float64 else rows.float()
    centred = wide - wide.mean(1, keepdim=True)
    return functional.normalize(centred, dim=1, eps=_SMALLEST_LENGTH)
