"""An autograd function whose arguments all come by position."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class PositionalFunction(torch.autograd.Function):
    """A function whose `forward` has no defaults and is called with positions only.

    `torch.autograd.Function.apply` works out the signature of `forward` and binds the arguments to
    it at every call, which takes longer than a small loss. Here that is left to the calls that
    need it: those under a transform of torch.func.
    """

    @classmethod
    def apply(cls, *args: Any, **kwargs: Any) -> Any:
        """Run the function.

        Raises:
            TypeError: An argument came by name.
        """
        if kwargs:
            raise TypeError(f"expected every argument by position, got {', '.join(kwargs)} by name")
        if torch._C._are_functorch_transforms_active():
            return super().apply(*args)
        # Tensors that left a transform that has ended are wrappers of no use; see torch.func.
        unwrap = torch._C._functorch.unwrap_if_dead
        given = [unwrap(x) if isinstance(x, Tensor) else x for x in args]
        without_binding: Any = super(torch.autograd.Function, cls)
        return without_binding.apply(*given)
