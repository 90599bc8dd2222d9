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
    "native": frozenset({"cpu"}),
    "triton": frozenset({"cpu" if triton.INTERPRETED else "cuda"}),
    "reference": frozenset({"cpu", "cuda", "mps", "xpu", "meta"}),
}

FUNCTIONS: Final = frozenset(
    {
        "posterior_kl", "evidence_loss", "class_evidence_loss", "linear_cross_entropy",
        "gram_loss", "class_means", "grid_pool",
    }
)  # fmt: skip

_forced: str | None = None


def available() -> dict[str, str | None]:
    """Every backend with None where it is usable, else the reason why it is not."""
    return {"reference": None, "native": native.FAILURE, "triton": triton.unusable()}


def select(device_type: str, dtype: torch.dtype) -> str:
    """Backend that serves tensors of a device type and dtype now.

    Raises:
        RuntimeError: a backend was asked for by name and cannot serve the device or dtype.
    """
    if _forced is not None:
        if device_type not in DEVICES[_forced]:
            raise RuntimeError(
                f"backend {_forced!r} was requested and does not serve device {device_type!r}"
            )
        if _forced == "triton" and dtype == torch.float64:
            raise RuntimeError("backend 'triton' was requested and does not serve torch.float64")
        return _forced
    if device_type in DEVICES["native"] and native.FAILURE is None:
        return "native"
    if device_type == "cuda" and triton.FAILURE is None and dtype != torch.float64:
        return "triton"
    return "reference"


def backend_for(
    function: str,
    tensor: Tensor | None = None,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Name of the backend that a call would use, before the call.

    Args:
        function: public function name, for example ``"posterior_kl"``.
        tensor: an input whose device and dtype are meant; or give them by
        device: device or device type, default CPU, and
        dtype: floating dtype, default float32.

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
    return select(device_type, torch.float32 if dtype is None else dtype)


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
