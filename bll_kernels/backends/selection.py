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
}

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
    if on_cuda and not native.cuda_serves(op, dtype, family, classes):
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


def backend_for(
    function: str,
    tensor: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    family: str = "gaussian",
    classes: int = 1,
) -> str:
    """Name of the backend that a call would use, before the call.

    Args:
        function: public function name, for example ``"posterior_kl"``.
        tensor: an input whose device and dtype are meant; or give them by
        device: device or device type, default CPU, and
        dtype: floating dtype, default float32.
        family: family name; on CUDA the backend of a class loss depends on it,
        classes: and on the number of classes.

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
    device_type = torch.device(device if device is not None else "cpu").type
    chosen = torch.float32 if dtype is None else dtype
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
