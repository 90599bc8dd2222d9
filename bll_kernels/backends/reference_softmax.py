"""Softmax cross-entropy of rows of scores, in place, of the reference backend."""

from __future__ import annotations

import torch
from torch import Tensor


def softmax_rows(
    scores: Tensor, labels: Tensor, offset: Tensor | None, weight: Tensor | None, slopes: Tensor
) -> Tensor:
    """Weighted losses of the rows; `slopes`, which may be `scores`, gets their derivatives."""
    total = scores if offset is None else scores + offset
    target = labels.reshape(-1, 1)
    losses = torch.logsumexp(total, -1) - total.gather(1, target)[:, 0]
    others = torch.softmax(total, -1).scatter_(1, target, 0.0)
    others.scatter_(1, target, -others.sum(-1, keepdim=True))
    if weight is not None:
        # A row of weight 0 counts for nothing, whatever it holds.
        others = torch.where(weight[:, None] == 0, 0, others * weight[:, None])
        losses = losses * weight
    slopes.copy_(others)
    return losses
