"""Whether a traced local step does what autograd does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from bll_kernels.pipeline.capture import NotTraceable

# Relative to the norm of all gradients: a bias in front of a batch norm has a gradient of nothing
# but rounding.
_TOLERANCE: Final = {torch.float64: 1e-10, torch.float32: 1e-4}
_HALF_TOLERANCE: Final = 3e-2


@torch.no_grad()
def restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Write values back into tensors."""
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


def check(
    what: str, found: Sequence[Tensor | None], truth: Sequence[Tensor | None], *, exact: bool
) -> None:
    """Raises NotTraceable where a program's tensors are not those of autograd."""
    if [x is None for x in found] != [x is None for x in truth]:
        raise NotTraceable(f"its trace gives {what} of another form than autograd")
    pairs = [
        (left.detach(), right.detach())
        for left, right in zip(found, truth, strict=True)
        if left is not None and right is not None
    ]
    for left, right in pairs:
        if left.shape != right.shape or left.dtype != right.dtype:
            raise NotTraceable(f"its trace gives {what} of another shape or dtype than autograd")
    if exact:
        same = all(torch.equal(left.nan_to_num(), right.nan_to_num()) for left, right in pairs)
    else:
        size = sum(float(right.double().nan_to_num().norm()) ** 2 for _, right in pairs) ** 0.5
        same = all(
            float((left.double() - right.double()).nan_to_num().norm())
            <= _TOLERANCE.get(right.dtype, _HALF_TOLERANCE) * size
            and torch.equal(left.isnan(), right.isnan())
            for left, right in pairs
        )
    if not same:
        raise NotTraceable(f"its trace gives other {what} than autograd")
