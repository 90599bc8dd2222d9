"""Standardised channels of the Triton kernels against the definition in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from test_standardize_channels import check_nonfinite, check_odd_inputs, check_standardized

import bll_kernels as bk
from bll_kernels.backends.triton.launch import channel_tile

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@pytest.mark.parametrize(
    "shape",
    [(2, 1), (37, 70), (70, 5, 9), (130, 3, 16), (9, 3, 33), (5, 2, 300), (1, 3, 7)],
    ids=str,
)
def test_shapes(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_standardized((2 * torch.randn(shape) + 1).to(dtype))


def test_odd_inputs() -> None:
    check_odd_inputs()
    check_nonfinite((5, 4, 3))


def test_behind_pooling() -> None:
    x = torch.randn(6, 5, 7, 6).to(memory_format=torch.channels_last)
    cells = bk.grid_pool(x, "max", 3).view(6, 5, -1)
    got = bk.grid_pool(x, "max", 3, standardize=True)
    torch.testing.assert_close(got, bk.standardize_channels(cells).flatten(1))


def test_tiles() -> None:
    assert channel_tile(1) == (64, 32, 1, 4)
    assert channel_tile(16) == (64, 2, 16, 4)
    assert channel_tile(49) == (32, 1, 64, 4)
    assert channel_tile(1000) == (8, 1, 256, 4)
