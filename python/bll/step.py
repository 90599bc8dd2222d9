"""The forward pass of a wrapped model that is in progress."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map_only

from bll.cutting import EarlierTensorsCut


class Step:
    """Labels and losses of the forward pass in progress."""

    def __init__(self, labels: Tensor, items: Tensor | int | None, cut_tensors: bool) -> None:
        self.labels = labels
        self.items = items
        self.losses: dict[str, Tensor] = {}
        # Outputs of blocks whose loss waits for the model's error.
        self.waiting: dict[str, Any] = {}
        # Output of the block before, for rules that read it.
        self.handed_on: Any = None
        self.earlier = EarlierTensorsCut() if cut_tensors else None


def map_tensors(function: Callable[[Tensor], Tensor], output: Any) -> Any:
    """Return what a module returned, with the function's result in place of every tensor.

    Most modules return one tensor, and walking a tree takes much longer than detaching it.
    """
    if isinstance(output, Tensor):
        return function(output)
    return tree_map_only(Tensor, function, output)


def detached_copy(tensor: Tensor) -> Tensor:
    """Return the values alone, in memory of their own."""
    return tensor.detach().clone()


def total_loss(losses: dict[str, Tensor]) -> Tensor:
    """Return the sum, on the device of the last."""
    values = list(losses.values())
    total = values[-1]
    for value in values[:-1]:
        total = total + (value if value.device == total.device else value.to(total.device))
    return total
