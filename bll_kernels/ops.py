"""Schemas, fake kernels and reference implementations of the registered ops.

Every backend is a namespace with the same eight ops: `bll_reference` is implemented here in
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

from bll_kernels.backends import reference, reference_pool, triton
from bll_kernels.families import FORMULAS
from bll_kernels.spec import accumulate_dtype

BACKENDS: Final = ("reference", "native", "triton")

_PAIR = "Tensor a, Tensor b, Tensor? labels, Tensor? weight, str family, int group, float tau, "
_PAIR += "str loss, float tilt, str reduction"
_CLASS = "Tensor a, Tensor table, Tensor labels, Tensor? bias, Tensor? weight, str family, "
_CLASS += "int group, float tau, bool normalize_message, float tilt, str reduction"
_CLASS_BACKWARD = "Tensor grad, Tensor residual, Tensor a, Tensor table, str family, int group, "
_CLASS_BACKWARD += "float tau, bool normalize_message, float tilt"
_CLASS_NEEDS = "bool need_a, bool need_table, bool need_bias"

SCHEMAS: Final = {
    "pair_loss": f"({_PAIR}) -> Tensor",
    "pair_loss_backward": f"(Tensor grad, {_PAIR}, bool need_a, bool need_b) -> (Tensor, Tensor)",
    "pair_loss_value_and_grad": f"({_PAIR}, bool need_a, bool need_b) -> (Tensor, Tensor, Tensor)",
    "class_loss": f"({_CLASS}) -> (Tensor, Tensor)",
    "class_loss_backward": f"({_CLASS_BACKWARD}, {_CLASS_NEEDS}) -> (Tensor, Tensor, Tensor)",
    "class_loss_value_and_grad": f"({_CLASS}, {_CLASS_NEEDS}) -> (Tensor, Tensor, Tensor, Tensor)",
    "grid_pool": "(Tensor x, str kind, int grid) -> Tensor",
    "grid_pool_backward": "(Tensor grad, Tensor x, str kind, int grid) -> Tensor",
}


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


def _fake_grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    shape = (x.shape[0], x.shape[1] * grid * grid)
    return x.new_empty(shape, dtype=accumulate_dtype(x.dtype))


def _fake_grid_pool_backward(grad: Tensor, x: Tensor, kind: str, grid: int) -> Tensor:
    return torch.empty_like(x)


_FAKES: Final[dict[str, Callable[..., Any]]] = {
    "pair_loss": _fake_pair_loss,
    "pair_loss_backward": _fake_pair_loss_backward,
    "pair_loss_value_and_grad": _fake_pair_loss_value_and_grad,
    "class_loss": _fake_class_loss,
    "class_loss_backward": _fake_class_loss_backward,
    "class_loss_value_and_grad": _fake_class_loss_value_and_grad,
    "grid_pool": _fake_grid_pool,
    "grid_pool_backward": _fake_grid_pool_backward,
}

_LIBRARIES: Final = {backend: Library(f"bll_{backend}", "DEF") for backend in BACKENDS}


def _register() -> None:
    for backend, library in _LIBRARIES.items():
        for name, schema in SCHEMAS.items():
            library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            torch.library.register_fake(f"bll_{backend}::{name}", _FAKES[name], lib=library)
    for name in SCHEMAS:
        module = reference_pool if name.startswith("grid_pool") else reference
        # Real devices only: the Meta key belongs to the fake kernels.
        for key in ("CPU", "CUDA", "MPS", "XPU"):
            _LIBRARIES["reference"].impl(name, getattr(module, name), key)


_register()

#: Which module of the Triton backend serves an op, by the beginning of the op's name.
_TRITON_MODULES: Final = {"pair": "pair", "class": "classes", "grid": "pool"}


def _triton_implementation(name: str) -> Callable[..., Any]:
    """The op, whose kernels are imported when it is first called."""
    module = f"{triton.__name__}.{_TRITON_MODULES[name.split('_')[0]]}"

    def implementation(*arguments: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*arguments)

    return implementation


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
