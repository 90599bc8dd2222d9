"""Loops in the interpreter of Triton 3.6, beside NumPy 2.4 and newer.

It takes the bounds of a loop by `int` of an array of one element, which NumPy refuses from 2.4 on;
Triton takes the element out first from 3.7 on. Compiled kernels are not concerned.
"""

from __future__ import annotations

from typing import Any, Final

import triton.runtime.interpreter as interpreter

_patch_tensor: Final = interpreter._patch_lang_tensor


def _patch_tensor_and_index(tensor: Any, scope: Any) -> None:
    """What the interpreter changes in `tensor`, the class, while a kernel runs."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda value: int(value.handle.data.item()))


def repair() -> None:
    """Lets tensors of one element be the bounds of loops; once is enough, twice is the same."""
    interpreter._patch_lang_tensor = _patch_tensor_and_index
