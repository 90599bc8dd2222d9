"""Whether this machine has what the CUDA tests need: a toolkit and a C++ compiler, no GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from conftest import REQUIRED

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from native_build.environment import Missing, find_compiler, find_cuda, find_ninja


def _missing() -> str | None:
    try:
        find_compiler()
        find_ninja()
        find_cuda()
    except Missing as error:
        return str(error)
    return None


MISSING = _missing()
needs_toolkit = pytest.mark.skipif(
    MISSING is not None and "cuda-compile" not in REQUIRED, reason=f"CUDA: {MISSING}"
)
