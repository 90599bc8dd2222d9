"""The Triton backend: what it needs, told without importing Triton.

The kernels are in modules named after the ops, imported at the first call that they serve, so
that importing the package stays quick and works without Triton.
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import Final

import torch

OLDEST: Final = (3, 6)

#: Triton's interpreter runs kernels as NumPy loops, on CPU tensors too. Triton reads the variable
#: when a kernel's module is imported, so it holds for the whole process.
INTERPRETED: Final = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _version() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _is_before(version: str, floor: tuple[int, int]) -> bool:
    return tuple(int(part) for part in version.split(".")[:2]) < floor


_VERSION: Final = _version()


def _missing() -> str | None:
    if _VERSION is None:
        return "Triton is not installed (pip install 'bll-kernels[triton]')"
    if _is_before(_VERSION, OLDEST):
        return f"Triton {_VERSION} is older than {'.'.join(map(str, OLDEST))}"
    return None


#: Why the kernels cannot even be compiled; None where they can. A constant, like the next, so
#: that compiled graphs see it.
MISSING: Final = _missing()

#: Whether loops need `interpreter_triton.repair` before the first launch.
REPAIRS_LOOPS: Final = INTERPRETED and _VERSION is not None and _is_before(_VERSION, (3, 7))

#: Why CUDA tensors cannot be served; None where they can. Nothing here asks the driver.
FAILURE: Final = MISSING or (
    "this process runs Triton's interpreter, on CPU tensors"
    if INTERPRETED
    else None
    if torch.version.cuda is not None
    else "this torch has no CUDA support"
)


def unusable() -> str | None:
    """Why no tensor of this process can be served; None where some can."""
    if INTERPRETED or FAILURE is not None:
        return MISSING if INTERPRETED else FAILURE
    if not torch.cuda.is_available():
        return "no CUDA device was found"
    if torch.cuda.get_device_capability() < (8, 0):
        return "the CUDA device is older than compute capability 8.0"
    return None
