"""Loading of the compiled libraries that implement the `bll_native` ops.

A library that is missing or cannot be loaded is no error here: the reason is kept, shown by
`available()` and `python -m bll_kernels`, and raised where the backend is asked for by name.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, Final

import torch

_PACKAGE = Path(__file__).resolve().parent.parent


@functools.cache
def build_info() -> dict[str, Any]:
    """What the build recorded about itself; empty where nothing was built."""
    path = _PACKAGE / "_build_info.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _load(name: str) -> str | None:
    found = sorted(_PACKAGE.glob(f"{name}.*so"))
    if not found:
        return "not built (a C++ compiler and torch's headers are needed; see README, Set-up)"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        built = build_info().get("torch_version", "an unknown version")
        return f"built for torch {built}, running {torch.__version__}: {error}"
    return None


def _load_cuda() -> str | None:
    if not any(_PACKAGE.glob("_C_cuda.*so")):
        reason = build_info().get("targets", {}).get("_C_cuda")
        return f"not built: {reason}" if reason else "not built"
    if torch.version.cuda is None:
        return "libtorch_cuda.so is missing: this torch has no CUDA"
    return _load("_C_cuda")


#: Why the CPU library cannot serve; None where it can. A constant, so that compiled graphs see it.
FAILURE: Final = _load("_C")

#: The same of the library for CUDA tensors. Nothing here asks the driver.
CUDA_FAILURE: Final = _load_cuda()

#: What its kernels take.
CUDA_DTYPES: Final = frozenset({torch.float32, torch.bfloat16, torch.float16})

#: What that library has kernels for, whether it could be loaded or not: op -> dtypes.
CUDA_OPS: Final = dict.fromkeys(
    ("pair_loss", "class_loss", "gram_loss", "class_means", "grid_pool", "standardize_channels"),
    CUDA_DTYPES,
)

#: Families that its class loss has kernels for, and the most classes of one call.
CUDA_CLASS_FAMILIES: Final = frozenset({"gaussian", "gaussian-precision", "bernoulli"})
CUDA_MOST_CLASSES: Final = 1024


def cuda_serves(op: str, dtype: torch.dtype, family: str, classes: int) -> bool:
    """Whether the CUDA library has a kernel for a call; pure, whatever is installed.

    Args:
        op: op without its suffix.
        dtype: of the tensors.
        family: family of a class loss; other ops do not read it.
        classes: rows of a class loss's table; other ops do not read it.
    """
    if dtype not in CUDA_OPS.get(op, ()):
        return False
    return op != "class_loss" or (family in CUDA_CLASS_FAMILIES and classes <= CUDA_MOST_CLASSES)


#: Families whose class loss and mean pooling are one kernel of it, the most latents of a row, and
#: the most elements of an image.
CUDA_POOLED_FAMILIES: Final = frozenset({"gaussian", "gaussian-precision"})
CUDA_POOLED_LATENTS: Final = 8192
CUDA_POOLED_ELEMENTS: Final = (2**31 - 1) // 4


def cuda_serves_pooled(
    dtype: torch.dtype, kind: str, latents: int, elements: int, family: str, classes: int
) -> bool:
    """Whether the CUDA library pools, scores and writes a map's gradient in one kernel; pure.

    Args:
        dtype: of the map.
        kind: of the pooling.
        latents: cells of an image, over all channels.
        elements: of an image.
        family: of the class loss.
        classes: rows of its table.
    """
    return (
        dtype in CUDA_DTYPES
        and kind == "mean"
        and family in CUDA_POOLED_FAMILIES
        and 1 <= latents <= CUDA_POOLED_LATENTS
        and elements <= CUDA_POOLED_ELEMENTS
        and 1 <= classes <= CUDA_MOST_CLASSES
    )
