"""Backend selection: pure rules over what is available, device and dtype."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from bll_kernels.backends import native, triton
from bll_kernels.spec import FLOAT_DTYPES

#: Device types each backend can serve, fastest backend first.
DEVICES: Final[dict[str, frozenset[str]]] = {
    "native": frozenset({"cpu", "cuda"} if native.CUDA_FAILURE is None else {"cpu"}),
    "triton": frozenset({"cpu" if triton.INTERPRETED else "cuda"}),
    "reference": frozenset({"cpu", "cuda", "mps", "xpu", "meta"}),
}

#: Public functions, each with the op that does its work.
FUNCTIONS: Final = {
    "posterior_kl": "pair_loss",
    "evidence_loss": "pair_loss",
    "class_evidence_loss": "class_loss",
    "linear_cross_entropy": "class_loss",
    "gram_loss": "gram_loss",
    "class_means": "class_means",
    "grid_pool": "grid_pool",
    "standardize_channels": "standardize_channels",
}

#: Device types on which a backend has what only the CUDA library has kernels for.
CUDA_KERNELS: Final[dict[str, frozenset[str]]] = {
    "native": frozenset({"cuda"} if native.CUDA_FAILURE is None else ()),
}

#: Device types on which a backend has the row kernel of class losses that go through matmul.
CHUNKS: Final[dict[str, frozenset[str]]] = {
    "native": CUDA_KERNELS["native"],
    "triton": DEVICES["triton"],
}

#: Families whose scores are one matmul, and the number of classes above which they go through it.
LINEAR_FAMILIES: Final = frozenset({"gaussian", "gaussian-precision"})
MOST_FUSED_CLASSES: Final = native.CUDA_MOST_CLASSES

_forced: str | None = None


def requested_backend() -> str | None:
    """The backend that `use_backend` asks for, or None."""
    return _forced


def available() -> dict[str, str | None]:
    """Every backend with None where it is usable, else the reason why it is not."""
    return {"reference": None, "native": native.FAILURE, "triton": triton.unusable()}


def cuda_choice(
    op: str,
    dtype: torch.dtype,
    *,
    native_built: bool,
    triton_usable: bool,
    family: str = "gaussian",
    classes: int = 1,
) -> str:
    """Backend that serves CUDA tensors: a rule until measurements decide per op and size.

    Args:
        op: op without its suffix, for example ``"pair_loss"``.
        dtype: of the tensors.
        native_built: whether the CUDA library is loaded.
        triton_usable: whether Triton can compile for this torch.
        family: family of a class loss.
        classes: classes of a class loss.
    """
    if native_built and native.cuda_serves(op, dtype, family, classes):
        return "native"
    return "triton" if triton_usable and dtype != torch.float64 else "reference"


def _check_forced(
    name: str, device_type: str, dtype: torch.dtype, op: str, family: str, classes: int
) -> None:
    if device_type not in DEVICES[name]:
        raise RuntimeError(
            f"backend {name!r} was requested and does not serve device {device_type!r}"
        )
    on_cuda = name == "native" and device_type == "cuda"
    if dtype == torch.float64 and (name == "triton" or on_cuda):
        raise RuntimeError(f"backend {name!r} was requested and does not serve torch.float64")
    if on_cuda and dtype not in native.CUDA_OPS.get(op, ()):
        raise RuntimeError(f"backend {name!r} was requested and has no CUDA kernel of {op}")
    chunked = op == "class_loss" and chunked_backend(device_type, dtype, family, classes)
    if on_cuda and not chunked and not native.cuda_serves(op, dtype, family, classes):
        raise RuntimeError(
            f"backend {name!r} was requested and has no CUDA kernel of {op} for {family} with "
            f"{classes} classes"
        )


def select(
    device_type: str, dtype: torch.dtype, op: str, family: str = "gaussian", classes: int = 1
) -> str:
    """Backend that serves tensors of a device type and dtype in an op now.

    Args:
        device_type: of the tensors.
        dtype: of the tensors.
        op: op without its suffix.
        family: family of a class loss; other ops do not ask.
        classes: classes of a class loss; other ops do not ask.

    Raises:
        RuntimeError: a backend was asked for by name and cannot serve the device or dtype.
    """
    if _forced is not None:
        _check_forced(_forced, device_type, dtype, op, family, classes)
        return _forced
    if device_type == "cuda":
        return cuda_choice(
            op,
            dtype,
            native_built=native.CUDA_FAILURE is None,
            triton_usable=triton.FAILURE is None,
            family=family,
            classes=classes,
        )
    if device_type in DEVICES["native"] and native.FAILURE is None:
        return "native"
    return "reference"


def reads_whole(x: Tensor, kind: str, grid: int) -> bool:
    """Whether a contiguous map [B, C, H, W] is its own pooling: one pixel to a cell, mean or max.

    Its latents are a view, with nothing to run.
    """
    return kind != "std" and x.shape[2] == grid == x.shape[3] and x.is_contiguous()


def fused_pool_backend(
    x: Tensor, kind: str, grid: int, family: str = "gaussian", classes: int = 1
) -> str | None:
    """Backend that would pool a map, score it and write its gradient in one kernel, or None.

    Args:
        x: map [B, C, H, W].
        kind: of the pooling.
        grid: cells per side.
        family: of the class loss.
        classes: rows of its table.
    """
    name = "native" if _forced is None else _forced
    if x.device.type not in CUDA_KERNELS.get(name, ()) or reads_whole(x, kind, grid):
        return None
    latents, elements = x.shape[1] * grid * grid, x.shape[1] * x.shape[2] * x.shape[3]
    served = native.cuda_serves_pooled(x.dtype, kind, latents, elements, family, classes)
    return name if served else None


def chunked_backend(device_type: str, dtype: torch.dtype, family: str, classes: int) -> str | None:
    """Backend of the row kernel of a class loss that goes through torch's matmul in chunks.

    None where a class loss has all its work in kernels of its own.
    """
    if classes <= MOST_FUSED_CLASSES or family not in LINEAR_FAMILIES or dtype == torch.float64:
        return None
    if _forced is not None:
        return _forced if device_type in CHUNKS.get(_forced, ()) else None
    if device_type != "cuda":
        return None
    if native.CUDA_FAILURE is None:
        return "native"
    return "triton" if triton.FAILURE is None else None


def optimizer_backend(device_type: str, dtype: torch.dtype) -> str | None:
    """Backend whose kernels step parameters of a device and dtype; None: torch's own do."""
    name = "native" if _forced is None else _forced
    served = device_type in CUDA_KERNELS.get(name, ()) and dtype in native.CUDA_DTYPES
    return name if served else None


def backend_for(
    function: str,
    tensor: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    family: str = "gaussian",
    classes: int = 1,
    pool: tuple[str, int] | None = None,
) -> str:
    """Name of the backend that a call would use, before the call.

    Args:
        function: public function name, for example ``"posterior_kl"``.
        tensor: an input whose device and dtype are meant; or give them by
        device: device or device type, default CPU, and
        dtype: floating dtype, default float32.
        family: family name; on CUDA the backend of a class loss depends on it,
        classes: and on the number of classes.
        pool: (kind, g) in front of a class loss's value and gradients, where `tensor` is the map:
            ``"native-pooled"`` where one kernel pools, scores and writes the map's gradient.

    A class loss of many classes whose scores go through torch's matmul, a chunk of rows at a time,
    adds ``"-chunked"`` to the backend of the kernel between.

    Raises:
        ValueError: unknown function, or a dtype that no backend serves.
        RuntimeError: a backend was asked for by name and cannot serve the device or dtype.
    """
    if function not in FUNCTIONS:
        raise ValueError(
            f"function: expected one of {', '.join(sorted(FUNCTIONS))}, got {function!r}"
        )
    if tensor is not None:
        device, dtype = tensor.device, tensor.dtype
    if dtype is not None and dtype not in FLOAT_DTYPES:
        raise ValueError(f"dtype: expected a floating dtype, got {dtype}")
    if pool is not None and tensor is not None and FUNCTIONS[function] == "class_loss":
        fused = fused_pool_backend(tensor, *pool, family, classes)
        if fused is not None:
            return f"{fused}-pooled"
    device_type = torch.device(device if device is not None else "cpu").type
    chosen = torch.float32 if dtype is None else dtype
    if FUNCTIONS[function] == "class_loss":
        chunked = chunked_backend(device_type, chosen, family, classes)
        if chunked is not None:
            return f"{chunked}-chunked"
    return select(device_type, chosen, FUNCTIONS[function], family, classes)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Serve every call in the block by one backend; process-wide, no fallback.

    Raises:
        ValueError: unknown backend.
        RuntimeError: the backend is not available; the message says why.
    """
    global _forced
    if name not in DEVICES:
        raise ValueError(f"backend: expected one of {', '.join(DEVICES)}, got {name!r}")
    reason = available()[name]
    if reason is not None:
        raise RuntimeError(f"backend {name!r} is not available: {reason}")
    previous, _forced = _forced, name
    try:
        yield
    finally:
        _forced = previous
