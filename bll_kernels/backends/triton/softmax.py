"""The op that turns rows of scores into losses and slopes."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.backends.triton import softmax_kernels
from bll_kernels.backends.triton.launch import launch, power_of_two

#: Scores of a row that a program has at once.
_MOST = 4096


def softmax_rows(
    scores: Tensor, labels: Tensor, offset: Tensor | None, weight: Tensor | None, slopes: Tensor
) -> Tensor:
    """Weighted losses of the rows; `slopes`, which may be `scores`, gets their derivatives."""
    if scores.dtype != torch.float32 or not scores.is_contiguous() or not slopes.is_contiguous():
        raise RuntimeError("scores, slopes: expected contiguous memory, and scores in float32")
    rows, classes = scores.shape
    losses = scores.new_empty((rows,))
    launch(
        softmax_kernels.softmax_rows, rows, 8 if classes > 1024 else 4,
        scores_ptr=scores, labels_ptr=labels.contiguous(), offset_ptr=offset,
        weight_ptr=weight, losses_ptr=losses, slopes_ptr=slopes, classes=classes,
        BLOCK=min(power_of_two(classes), _MOST),
    )  # fmt: skip
    return losses
