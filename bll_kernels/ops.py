"""Schemas, fake kernels and reference implementations of the registered ops.

Every backend is a namespace with the same ops: `bll_reference` is implemented here in
Python; `bll_native` gets its implementations from the compiled libraries, `bll_triton` its own
from modules imported at the first call. The schemas exist without any of them, so exported
programs and fake tensors work everywhere.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor
from torch.library import Library

from bll_kernels.backends import (
    reference,
    reference_gram,
    reference_pool,
    reference_softmax,
    reference_standardize,
    triton,
)
from bll_kernels.backends.context import kernel_context
from bll_kernels.backends.pooled import composed
from bll_kernels.families import FORMULAS
from bll_kernels.schemas import CUDA_SCHEMAS, SCHEMAS
from bll_kernels.spec import accumulate_dtype

BACKENDS: Final = ("reference", "native", "triton")


def _batch(a: Tensor, family: str) -> torch.Size:
    return a.shape[: a.dim() - FORMULAS[family].planes]


def _fake_value(a: Tensor, family: str, reduction: str) -> Tensor:
    shape = _batch(a, family) if reduction == "none" else ()
    return a.new_empty(shape, dtype=accumulate_dtype(a.dtype))


def _fake_grad(like: Tensor, wanted: bool, dtype: torch.dtype | None = None) -> Tensor:
    return like.new_empty(like.shape if wanted else (0,), dtype=dtype or like.dtype)


def _fake_pair_loss(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None, family: str, group: int,
    tau: float, loss: str, tilt: float, reduction: str,
) -> Tensor:  # fmt: skip
    return _fake_value(a, family, reduction)


def _fake_pair_loss_backward(
    grad: Tensor, a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None, family: str,
    group: int, tau: float, loss: str, tilt: float, reduction: str, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _fake_grad(a, need_a), _fake_grad(b, need_b)


def _fake_pair_loss_value_and_grad(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None, family: str, group: int,
    tau: float, loss: str, tilt: float, reduction: str, need_a: bool, need_b: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _fake_value(a, family, reduction), _fake_grad(a, need_a), _fake_grad(b, need_b)


def _fake_pair_loss_next(
    a: Tensor, b: Tensor, labels: Tensor | None, weight: Tensor | None, family: str, group: int,
    tau: float, loss: str, tilt: float, reduction: str, need_a: bool, need_b: bool, mix: float,
    next_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    value = _fake_value(a, family, reduction)
    mean = a.new_empty((*_batch(a, family), a.shape[-1]), dtype=next_dtype)
    return value, _fake_grad(a, need_a), _fake_grad(b, need_b), mean


def _fake_class_loss(
    a: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, normalize_message: bool, tilt: float, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    residual = a.new_empty((*_batch(a, family), table.shape[0]), dtype=accumulate_dtype(a.dtype))
    return _fake_value(a, family, reduction), residual


def _fake_class_loss_backward(
    grad: Tensor, residual: Tensor, a: Tensor, table: Tensor, family: str, group: int, tau: float,
    normalize_message: bool, tilt: float, need_a: bool, need_table: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    bias = residual.new_empty((table.shape[0] if need_bias else 0,))
    return _fake_grad(a, need_a), _fake_grad(table, need_table), bias


def _fake_class_loss_value_and_grad(
    a: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None, weight: Tensor | None,
    family: str, group: int, tau: float, normalize_message: bool, tilt: float, reduction: str,
    need_a: bool, need_table: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    value = _fake_value(a, family, reduction)
    bias_grad = value.new_empty((table.shape[0] if need_bias else 0,))
    return value, _fake_grad(a, need_a), _fake_grad(table, need_table), bias_grad


def _fake_pooled_class_loss(
    x: Tensor, table: Tensor, labels: Tensor, bias: Tensor | None, weight: Tensor | None,
    family: str, tau: float, normalize_message: bool, tilt: float, reduction: str, grid: int,
    need_x: bool, compact: bool, need_table: bool, need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    dtype = accumulate_dtype(x.dtype)
    value = x.new_empty(x.shape[:1] if reduction == "none" else (), dtype=dtype)
    grad = torch.empty_like(x) if need_x else x.new_empty((0,))
    if need_x and compact:
        grad = x.new_empty((x.shape[0], x.shape[1] * grid * grid), dtype=dtype)
    bias_grad = value.new_empty((table.shape[0] if need_bias else 0,))
    return value, grad, _fake_grad(table, need_table), bias_grad


def _fake_softmax_rows(
    scores: Tensor, labels: Tensor, offset: Tensor | None, weight: Tensor | None, slopes: Tensor
) -> Tensor:
    return scores.new_empty(scores.shape[:1])


def _fake_gram_loss(
    x: Tensor, labels: Tensor | None, vectors: Tensor | None, weight: Tensor | None, same: float,
    other: float, center: bool, reduction: str,
) -> Tensor:  # fmt: skip
    shape = x.shape[:1] if reduction == "none" else ()
    return x.new_empty(shape, dtype=accumulate_dtype(x.dtype))


def _fake_gram_loss_backward(
    grad: Tensor, x: Tensor, labels: Tensor | None, vectors: Tensor | None, weight: Tensor | None,
    same: float, other: float, center: bool, reduction: str,
) -> Tensor:  # fmt: skip
    return x.new_empty(x.shape)


def _fake_gram_loss_value_and_grad(
    x: Tensor, labels: Tensor | None, vectors: Tensor | None, weight: Tensor | None, same: float,
    other: float, center: bool, reduction: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    value = _fake_gram_loss(x, labels, vectors, weight, same, other, center, reduction)
    return value, x.new_empty(x.shape)


def _fake_class_means(x: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    means = x.new_empty((classes, *x.shape[1:]), dtype=accumulate_dtype(x.dtype))
    return means, x.new_empty((classes,), dtype=torch.int64)


def _fake_class_means_backward(grad: Tensor, labels: Tensor, counts: Tensor) -> Tensor:
    return grad.new_empty((*labels.shape, *grad.shape[1:]))


def _fake_grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    shape = (x.shape[0], x.shape[1] * grid * grid)
    return x.new_empty(shape, dtype=accumulate_dtype(x.dtype))


def _fake_grid_pool_backward(grad: Tensor, x: Tensor, kind: str, grid: int) -> Tensor:
    return torch.empty_like(x)


def _fake_standardize_channels(x: Tensor, channels: int, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty((channels,))


def _fake_standardize_channels_backward(
    grad: Tensor, standardized: Tensor, scale: Tensor
) -> Tensor:
    return standardized.new_empty(standardized.shape)


_FAKES: Final[dict[str, Callable[..., Any]]] = {
    "pair_loss": _fake_pair_loss,
    "pair_loss_backward": _fake_pair_loss_backward,
    "pair_loss_value_and_grad": _fake_pair_loss_value_and_grad,
    "pair_loss_next": _fake_pair_loss_next,
    "class_loss": _fake_class_loss,
    "class_loss_backward": _fake_class_loss_backward,
    "class_loss_value_and_grad": _fake_class_loss_value_and_grad,
    "pooled_class_loss_value_and_grad": _fake_pooled_class_loss,
    "softmax_rows": _fake_softmax_rows,
    "gram_loss": _fake_gram_loss,
    "gram_loss_backward": _fake_gram_loss_backward,
    "gram_loss_value_and_grad": _fake_gram_loss_value_and_grad,
    "class_means": _fake_class_means,
    "class_means_backward": _fake_class_means_backward,
    "grid_pool": _fake_grid_pool,
    "grid_pool_backward": _fake_grid_pool_backward,
    "standardize_channels": _fake_standardize_channels,
    "standardize_channels_backward": _fake_standardize_channels_backward,
}


def _stem(name: str) -> str:
    """An op's name without what its backward and value-and-gradient forms add to it."""
    return "_".join(name.split("_")[:2])


_REFERENCE_MODULES: Final = {
    "pair_loss": reference,
    "class_loss": reference,
    "softmax_rows": reference_softmax,
    "gram_loss": reference_gram,
    "class_means": reference_gram,
    "grid_pool": reference_pool,
    "standardize_channels": reference_standardize,
}

#: Real devices only: the Meta key belongs to the fake kernels.
_REFERENCE_KEYS: Final = ("CPU", "CUDA", "MPS", "XPU")
_COMPOSED: Final = "pooled_class_loss_value_and_grad"

_LIBRARIES: Final = {backend: Library(f"bll_{backend}", "DEF") for backend in BACKENDS}


def _in_context(function: Callable[..., Any]) -> Callable[..., Any]:
    """An op in Python as its first tensor's device and dtypes want it."""

    def implementation(*arguments: Any) -> Any:
        with kernel_context(arguments[0].device):
            return function(*arguments)

    return implementation


def _register() -> None:
    for backend, library in _LIBRARIES.items():
        for name, schema in SCHEMAS.items():
            library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(f"bll_{backend}::{name}", _FAKES[name], lib=library)
    for name, schema in CUDA_SCHEMAS.items():
        _LIBRARIES["native"].define(name + schema)
    # Kernels of their own for these only where the CUDA library has them.
    _LIBRARIES["native"].impl(_COMPOSED, composed("native"), "CPU")
    _LIBRARIES["native"].impl("softmax_rows", reference_softmax.softmax_rows, "CPU")
    for name in SCHEMAS:
        if name == _COMPOSED:
            for key in _REFERENCE_KEYS:
                _LIBRARIES["reference"].impl(name, composed("reference"), key)
            continue
        module = _REFERENCE_MODULES[_stem(name)]
        for key in _REFERENCE_KEYS:
            _LIBRARIES["reference"].impl(name, _in_context(getattr(module, name)), key)


_register()

_TRITON_MODULES: Final = {
    "pair_loss": "pair",
    "class_loss": "classes",
    "softmax_rows": "softmax",
    "gram_loss": "gram",
    "class_means": "means",
    "grid_pool": "pool",
    "standardize_channels": "standardize",
}


def _triton_implementation(name: str) -> Callable[..., Any]:
    """The op, whose kernels are imported when it is first called."""
    if name == _COMPOSED:
        return composed("triton")
    module = f"{triton.__name__}.{_TRITON_MODULES[_stem(name)]}"

    def implementation(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments)

    return _in_context(implementation)


def _register_triton() -> None:
    keys = ["CUDA"] if triton.FAILURE is None else []
    if triton.INTERPRETED and triton.MISSING is None:
        keys.append("CPU")
    for name in SCHEMAS:
        for key in keys:
            _LIBRARIES["triton"].impl(name, _triton_implementation(name), key)


_register_triton()


def op(backend: str, name: str) -> Callable[..., Any]:
    """The registered op `name` of a backend."""
    return getattr(getattr(torch.ops, f"bll_{backend}"), name).default  # type: ignore[no-any-return]
