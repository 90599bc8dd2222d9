"""An autograd function whose arguments all come by position."""

from __future__ import annotations

import inspect
from typing import Any

import torch


class _Bound(inspect.BoundArguments):
    """Arguments as they were given."""

    def __init__(self, signature: inspect.Signature, given: tuple[Any, ...]) -> None:
        self._arguments = given
        super().__init__(signature, {})

    @property
    def args(self) -> tuple[Any, ...]:
        """The given ones."""
        return self._arguments

    @property
    def kwargs(self) -> dict[str, Any]:
        """None were given."""
        return {}

    def apply_defaults(self) -> None:
        """There are none."""


class _Positional(inspect.Signature):
    """A signature that binds positions to themselves."""

    def bind(self, *args: Any, **kwargs: Any) -> inspect.BoundArguments:
        """Return the positions.

        Raises:
            TypeError: An argument came by name.
        """
        if kwargs:
            raise TypeError(f"expected every argument by position, got {', '.join(kwargs)} by name")
        return _Bound(self, args)


class PositionalFunction(torch.autograd.Function):
    """A function whose `forward` has no defaults and is called with positions only.

    `torch.autograd.Function.apply` works out the signature of `forward` and binds the arguments to
    it at every call, which takes longer than a small loss. A signature kept on `forward` that has
    nothing to bind spares both.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the signature."""
        super().__init_subclass__(**kwargs)
        parameters = inspect.signature(cls.forward).parameters.values()
        cls.forward.__signature__ = _Positional(list(parameters))  # type: ignore[attr-defined]
