"""The backends that serve a GPU here; a GPU that BLL_REQUIRE asks for and is missing fails."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from conftest import REQUIRED

from bll_kernels import available, use_backend
from bll_kernels.backends import native

MISSING = None if torch.cuda.is_available() else "torch sees no GPU"
#: What serves CUDA tensors: None, or why not.
SERVING = {"native": MISSING or native.CUDA_FAILURE, "triton": MISSING or available()["triton"]}


def require_device() -> None:
    """Skips the calling module where there is no GPU and none is asked for."""
    if MISSING is not None and "cuda" not in REQUIRED:
        pytest.skip(f"cuda: {MISSING}", allow_module_level=True)


@pytest.fixture(params=SERVING)
def gpu(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on each backend that serves a GPU."""
    reason = SERVING[request.param]
    if reason is not None:
        pytest.fail(f"{request.param}: {reason}")
    with use_backend(request.param):
        yield request.param
