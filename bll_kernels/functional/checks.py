"""Argument checks of the public functions.

Each raises ValueError or TypeError that names the argument, what was expected and what came,
before anything is computed. Nothing here reads a tensor's data but `check_label_range`, which
backends that read labels themselves (`CHECK_LABELS`) spare until they refuse one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from bll_kernels.families import NORMALISED_MESSAGES, Family
from bll_kernels.spec import (
    DIRECTIONS,
    FLOAT_DTYPES,
    HALF_DTYPES,
    LABEL_DTYPES,
    NEXT_DTYPES,
    NEXT_INPUTS,
    POOLS,
    REDUCTIONS,
    accumulate_dtype,
)

#: Backends whose ops look at every label on the CPU before they compute.
CHECK_LABELS: Final = frozenset({"native"})


def _shape(x: Tensor) -> str:
    return str(tuple(x.shape))


def _check_dense(name: str, x: Tensor) -> None:
    if x.layout is not torch.strided or x.is_nested:
        kind = "a nested tensor" if x.is_nested else f"layout {x.layout}"
        raise TypeError(f"{name}: expected a dense tensor, got {kind}")


def check_float_tensor(name: str, x: object) -> Tensor:
    """A dense tensor of a supported floating dtype."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    _check_dense(name, x)
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{name}: expected float64, float32, bfloat16 or float16, got {x.dtype}")
    return x


def check_same_device(name: str, x: Tensor, reference: Tensor, reference_name: str) -> None:
    """`x` lives where `reference` lives."""
    if x.device != reference.device:
        raise ValueError(
            f"{name}: expected device {reference.device} as {reference_name}, got {x.device}"
        )


def check_partner(name: str, x: object, a: Tensor, a_name: str = "a") -> Tensor:
    """A float tensor on a's device, of a's dtype or float32 beside a half type."""
    x = check_float_tensor(name, x)
    check_same_device(name, x, a, a_name)
    if x.dtype != a.dtype and not (a.dtype in HALF_DTYPES and x.dtype == torch.float32):
        also = " or float32" if a.dtype in HALF_DTYPES else ""
        raise TypeError(f"{name}: expected {a.dtype}{also} beside {a_name}, got {x.dtype}")
    return x


def check_latents(name: str, x: Tensor, family: Family, planes: int) -> None:
    """Enough dimensions, two planes where the family has two, whole groups."""
    if x.dim() < planes:
        raise ValueError(
            f"{name}: expected at least {planes} dimension(s) for {family.name}, got {_shape(x)}"
        )
    if planes > 1 and x.shape[-2] != planes:
        raise ValueError(
            f"{name}: expected shape [..., {planes}, D] for {family.name}, got {_shape(x)}"
        )
    if family.group is not None and x.shape[-1] % family.group:
        raise ValueError(
            f"{name}: expected a last dimension divisible by group={family.group}, got {_shape(x)}"
        )


def check_labels(
    labels: object, batch: torch.Size, a: Tensor, name: str = "labels", a_name: str = "a"
) -> Tensor:
    """Integer class labels of the batch shape, returned as int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
    _check_dense(name, labels)
    if labels.dtype not in LABEL_DTYPES:
        raise TypeError(f"{name}: expected an integer dtype, got {labels.dtype}")
    check_same_device(name, labels, a, a_name)
    if labels.shape != batch:
        raise ValueError(f"{name}: expected shape {tuple(batch)}, got {_shape(labels)}")
    return labels.to(torch.int64)


def check_classes(num_classes: object) -> int:
    """A number of classes, at least one."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: expected an integer, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    return num_classes


def check_label_range(labels: Tensor, classes: int, name: str = "labels") -> None:
    """Every label in [0, classes); read on the CPU only, where it costs no synchronisation.

    On an accelerator, and inside a compiled graph, the kernels themselves refuse or guard.
    """
    if labels.device.type != "cpu" or torch.compiler.is_compiling() or is_fake(labels):
        return
    if labels.numel() == 0:
        return
    low, high = (int(x) for x in torch.aminmax(labels))
    if low < 0 or high >= classes:
        raise ValueError(f"{name}: expected values in [0, {classes}), got {low} to {high}")


def run_checked(
    labels: Tensor | None, classes: int, function: Callable[..., Any], *arguments: Any
) -> Any:
    """Call an op that may refuse `labels` itself, with `check_label_range`'s error if it does."""
    try:
        return function(*arguments)
    except RuntimeError:
        if labels is None:
            raise
        try:
            check_label_range(labels, classes)
        except ValueError as refused:
            raise refused from None
        raise


def check_weight(weight: object, batch: torch.Size, a: Tensor, name: str = "weight") -> Tensor:
    """Per-row factors in the accumulate dtype; constants, so they may not require a gradient."""
    weight = check_float_tensor(name, weight)
    check_same_device(name, weight, a, "a")
    if weight.shape != batch:
        raise ValueError(f"{name}: expected shape {tuple(batch)}, got {_shape(weight)}")
    if weight.requires_grad:
        raise ValueError(f"{name}: expected a constant, got a tensor that requires a gradient")
    return weight.to(accumulate_dtype(a.dtype))


def check_bias(bias: object, classes: int, a: Tensor) -> Tensor:
    """One float per class."""
    bias = check_float_tensor("bias", bias)
    check_same_device("bias", bias, a, "a")
    if bias.shape != (classes,):
        raise ValueError(f"bias: expected shape ({classes},), got {_shape(bias)}")
    return bias


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """One of a few words."""
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(choices)}, got {value!r}")


def check_reduction(reduction: object) -> None:
    """none, sum or batchmean."""
    check_choice("reduction", reduction, REDUCTIONS)


def check_direction(direction: object) -> None:
    """rho_alpha or alpha_rho."""
    check_choice("direction", direction, DIRECTIONS)


def check_flag(name: str, value: object) -> None:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def check_tilt(tilt: object, family: Family) -> float:
    """A finite power; positive where the message's precision is scaled by it."""
    if isinstance(tilt, bool) or not isinstance(tilt, (int, float)):
        raise TypeError(f"tilt: expected a number, got {type(tilt).__name__}")
    if not -math.inf < tilt < math.inf:
        raise ValueError(f"tilt: expected a finite number, got {tilt}")
    if family.name in NORMALISED_MESSAGES and tilt <= 0:
        raise ValueError(f"tilt: expected a positive number for {family.name}, got {tilt}")
    return float(tilt)


def check_pool_arguments(kind: object, grid: object) -> None:
    """Kind and grid size of a pooling."""
    check_choice("pool kind", kind, POOLS)
    if isinstance(grid, bool) or not isinstance(grid, int):
        raise TypeError(f"pool grid: expected an integer, got {type(grid).__name__}")
    if grid < 1:
        raise ValueError(f"pool grid: expected at least 1, got {grid}")


def check_map(name: str, x: object) -> Tensor:
    """A [B, C, H, W] map with at least one pixel per channel."""
    x = check_float_tensor(name, x)
    if x.dim() != 4:
        raise ValueError(f"{name}: expected a map [B, C, H, W], got {_shape(x)}")
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"{name}: expected at least one pixel per channel, got {_shape(x)}")
    return x


def check_wrt(
    wrt: object, names: tuple[str, ...], pool: tuple[str, int] | None, compact_grad: object
) -> None:
    """Names of arguments to differentiate by, each once; compact gradients of mean cells only."""
    if isinstance(wrt, str) or not isinstance(wrt, Sequence):
        raise TypeError(f"wrt: expected a sequence of names, got {wrt!r}")
    if len(set(wrt)) != len(wrt) or not set(wrt) <= set(names):
        raise ValueError(f"wrt: expected distinct names out of {', '.join(names)}, got {wrt!r}")
    check_flag("compact_grad", compact_grad)
    if compact_grad and (pool is None or pool[0] != "mean"):
        raise ValueError(f'compact_grad: expected pool=("mean", g) beside it, got pool={pool!r}')


def _check_mix(next_input: object) -> float:
    """The weight of the posterior's mean in the next block's input."""
    if isinstance(next_input, str):
        check_choice("next_input", next_input, tuple(NEXT_INPUTS))
        return NEXT_INPUTS[next_input]
    if isinstance(next_input, bool) or not isinstance(next_input, (int, float)):
        raise TypeError(
            f"next_input: expected None, a string or a number, got {type(next_input).__name__}"
        )
    if not 0 <= next_input <= 1:
        raise ValueError(f"next_input: expected a number in [0, 1], got {next_input}")
    return float(next_input)


def check_next(
    next_input: object, next_dtype: object, a: object
) -> tuple[float, torch.dtype] | None:
    """Mix and dtype of the next block's input; None where it is not wanted."""
    if next_input is None:
        if next_dtype is not None:
            raise ValueError(f"next_dtype: expected next_input beside it, got {next_dtype}")
        return None
    mix = _check_mix(next_input)
    a = check_float_tensor("a", a)
    dtype = a.dtype if next_dtype is None else next_dtype
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"next_dtype: expected a torch.dtype, got {type(dtype).__name__}")
    allowed = [x for x in NEXT_DTYPES if x != torch.float64 or a.dtype == torch.float64]
    if dtype not in allowed:
        words = ", ".join(str(x) for x in allowed)
        raise ValueError(f"next_dtype: expected one of {words} beside {a.dtype} a, got {dtype}")
    if dtype == torch.float8_e4m3fn and a.device.type == "mps":
        raise ValueError(f"next_dtype: {dtype} is not available on device {a.device}")
    return mix, dtype


def check_bias_wanted(wrt: Sequence[str], bias: Tensor | None) -> None:
    """A gradient of the bias needs a bias."""
    if "bias" in wrt and bias is None:
        raise ValueError("wrt: expected a bias beside the name 'bias', got bias=None")
