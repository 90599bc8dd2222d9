"""What the suites of tests/cuda call the emulator, with a GPU behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
from on_device import serve
from torch.library import Library

from bll_kernels.backends import selection
from bll_kernels.schemas import CUDA_SCHEMAS, SCHEMAS

ORDERS = (0,)
SANITIZED = False
PROCESSORS = 0
SHARED = 232_448


@cache
def library() -> Library:
    """Declares the ops; once per process."""
    declared = Library("bll_emulated", "DEF")
    for name, schema in {**SCHEMAS, **CUDA_SCHEMAS}.items():
        declared.define(name + schema)
    serve(declared, "native")
    return declared


@contextmanager
def emulation(
    order: int = 0, processors: int = PROCESSORS, cluster: int = 0, shared: int = SHARED
) -> Iterator[None]:
    """Serve every call in the block by the GPU, which has the properties it has."""
    library()
    before, known = selection._forced, "emulated" in selection.DEVICES
    tables = (selection.DEVICES, selection.CUDA_KERNELS, selection.CHUNKS)
    for table in tables:
        table["emulated"] = frozenset({"cpu"})
    selection._forced = "emulated"
    try:
        yield
    finally:
        selection._forced = before
        if not known:
            for table in tables:
                del table["emulated"]


def counts() -> dict[str, int]:
    """Nothing is counted on a GPU."""
    pytest.skip("launches and accesses are counted by the emulator only")


@pytest.fixture
def cuda() -> Iterator[None]:
    """Serves the public functions by the GPU."""
    with emulation():
        yield
