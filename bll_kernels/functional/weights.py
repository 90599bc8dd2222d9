"""Weights of rows for the losses called inside a context."""

from __future__ import annotations

from contextvars import ContextVar, Token
from types import TracebackType

import torch
from torch import Tensor


class row_weights:
    """Weigh the rows of every loss inside that has this batch and no weight of its own.

    What wraps a function of losses uses it to leave rows out (weight 0) without a shape that
    depends on the data. A function that cannot weigh its rows raises inside. Compiled graphs see no
    such context: they leave it unused.

    Args:
        weight: [*batch], a constant factor per row.

    Attributes:
        used: Whether a loss inside took the weights.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight
        self.used = False
        self._token: Token[row_weights | None] | None = None

    def __enter__(self) -> row_weights:
        self._token = _current.set(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)


_current: ContextVar[row_weights | None] = ContextVar("row_weights", default=None)


def _context() -> row_weights | None:
    return None if torch.compiler.is_compiling() else _current.get()


def surrounding_weight(batch: torch.Size) -> Tensor | None:
    """Return the weights of the context around the call, if there is one for this batch."""
    context = _context()
    if context is None or context.weight.shape != batch:
        return None
    context.used = True
    return context.weight


def refuse_surrounding_weight(function: str) -> None:
    """Raise inside a `row_weights` context.

    Raises:
        ValueError: The function's rows depend on each other, so that none can be left out.
    """
    if _context() is not None:
        raise ValueError(
            f"weight: {function} compares its rows with each other, so none can be left out"
        )
