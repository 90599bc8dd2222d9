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


def _load() -> str | None:
    found = sorted(_PACKAGE.glob("_C.*so"))
    if not found:
        return "not built (a C++ compiler and torch's headers are needed; see README, Set-up)"
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        built = build_info().get("torch_version", "an unknown version")
        return f"built for torch {built}, running {torch.__version__}: {error}"
    return None


#: Why the CPU library cannot serve; None where it can. A constant, so that compiled graphs see it.
FAILURE: Final = _load()
