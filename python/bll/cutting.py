"""Cutting what goes round a border: tensors of earlier blocks are detached where they are used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class EarlierTensorsCut(TorchFunctionMode):
    """Detaches every tensor that an earlier block computed, in each operation that takes one.

    A skip connection past a border then carries values and no gradient, wherever it ends: in a
    module or in an operation of the model's own forward. What a block computed is told by the
    numbers autograd gives its nodes, which only grow. Costs Python time in every operation of the
    forward pass. Parameters are leaves and stay as they are, so tied weights still leak.
    """

    def __init__(self) -> None:
        super().__init__()
        self._border = -1

    def begin_block(self) -> None:
        """From now on whatever exists with a gradient history belongs to an earlier block."""
        self._border = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Run the operation on detached forms of what is not its block's own."""
        cut = {name: self._cut(value) for name, value in (kwargs or {}).items()}
        return func(*(self._cut(value) for value in args), **cut)

    def _cut(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            node = value.grad_fn
            earlier = node is not None and node._sequence_nr() < self._border
            return value.detach() if earlier else value
        if type(value) in (list, tuple):
            return type(value)(self._cut(item) for item in value)
        return value
