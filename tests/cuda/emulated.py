"""The emulated CUDA ops as a backend of the public functions, and their counters."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch
from emulator_build import build
from torch.library import Library

from bll_kernels.backends import selection
from bll_kernels.schemas import CUDA_SCHEMAS, SCHEMAS

#: Forward, backward and shuffled.
ORDERS = (0, 1, 7)
#: Whether the library is built with UndefinedBehaviorSanitizer; set before the first use.
SANITIZED = False
COUNTS = ("launches", "blocks", "barriers", "shuffles", "loaded", "stored", "special")
PROCESSORS = 3
#: Blocks of a cluster, and bytes of shared memory that a block may ask for: those of an H100, but
#: for the clusters, which take their time here.
CLUSTER, SHARED = 2, 232_448


@cache
def library() -> ctypes.CDLL:
    """Builds and loads the emulator, and declares its ops; once per process."""
    declared = Library("bll_emulated", "DEF")
    for name, schema in {**SCHEMAS, **CUDA_SCHEMAS}.items():
        declared.define(name + schema)
    path = str(build(SANITIZED))
    torch.ops.load_library(path)
    loaded = ctypes.CDLL(path)
    loaded.declared = declared  # the ops live as long as this object
    return loaded


@contextmanager
def emulation(
    order: int, processors: int = PROCESSORS, cluster: int = CLUSTER, shared: int = SHARED
) -> Iterator[None]:
    """Serve every call in the block by the emulator, on a device with these properties."""
    library().bll_emulator_set(order, processors, cluster, ctypes.c_int64(shared))
    devices = selection.DEVICES
    before, known = selection._forced, "emulated" in devices
    tables = (devices, selection.CUDA_KERNELS, selection.CHUNKS)
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
    """What the emulator did since the last call."""
    numbers = (ctypes.c_int64 * len(COUNTS))()
    library().bll_emulator_counts(numbers)
    return dict(zip(COUNTS, numbers, strict=True))


@pytest.fixture(params=ORDERS, ids="order{}".format)
def cuda(request: pytest.FixtureRequest) -> Iterator[None]:
    """Serves the public functions by the emulator, in each order of threads."""
    with emulation(request.param):
        yield
