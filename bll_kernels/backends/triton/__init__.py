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


def _missing() -> str | None:
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed (pip install 'bll-kernels[triton]')"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"Triton {version} is older than {'.'.join(map(str, OLDEST))}"
    return None


#: Why the kernels cannot even be compiled; None where they can. A constant, like the next, so
#: that compiled graphs see it.
MISSING: Final = _missing()

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
