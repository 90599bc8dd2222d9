"""Standardised channels of the emulated CUDA kernels against the definition in float64."""

from __future__ import annotations

import pytest
import torch
from emulated import counts, cuda, emulation  # noqa: F401
from test_pool import MEMORY
from test_standardize_channels import check_nonfinite, check_odd_inputs, check_standardized
from tolerance import assert_same_bits

import bll_kernels as bk
from bench.cuda_traffic import standardized
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

#: Channels that share a warp, that fill one and that go round several times; rows that fill no
#: chunk; one row.
SHAPES = [(2, 1), (37, 70), (70, 5, 9), (130, 3, 16), (9, 3, 33), (5, 2, 100), (1, 3, 7), (3, 1, 1)]
#: More numbers than one block takes: sections of the rows, the last one short.
LARGE = [(3000, 33), (1100, 3, 64), (2200, 2, 31)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        check_standardized((2 * torch.randn(shape) + 1).to(dtype))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_rows_in_sections(shape: tuple[int, ...]) -> None:
    check_standardized(2 * torch.randn(shape) + 1)


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_sections_take_two_launches(shape: tuple[int, ...]) -> None:
    counts()
    bk.standardize_channels(torch.randn(shape))
    assert counts()["launches"] == 2


def test_odd_inputs() -> None:
    check_odd_inputs()
    check_nonfinite((5, 4, 3))
    check_nonfinite((2200, 4, 16))


@pytest.mark.parametrize("memory", MEMORY)
def test_behind_pooling(memory: str) -> None:
    x = torch.randn(6, 5, 7, 6).to(memory_format=MEMORY[memory])
    for grid in (2, 3):
        cells = bk.grid_pool(x, "mean", grid).view(6, 5, -1)
        got = bk.grid_pool(x, "mean", grid, standardize=True)
        assert_same_bits(got, bk.standardize_channels(cells).flatten(1))


def test_same_bits_in_every_order() -> None:
    for shape in ((40, 70), (30, 3, 40), (2200, 1, 33)):
        x, up = torch.randn(shape).flatten(1), torch.randn(shape).flatten(1)
        results = []
        for order in (0, 1, 5):
            with emulation(order):
                found = op("emulated", "standardize_channels")(x, shape[1], 1e-5)
                back = op("emulated", "standardize_channels_backward")(up, *found)
                results.append((*found, back))
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert_same_bits(got, want)


def test_traffic() -> None:
    """One launch that reads everything twice, the second time from cache, and writes it once."""
    x, up = torch.randn(64, 8 * 16), torch.randn(64, 8 * 16)
    counts()
    found = op("emulated", "standardize_channels")(x, 8, 1e-5)
    done, want = counts(), standardized(x.numel(), 8)
    assert done["launches"] == 1
    # The scales are stored uncounted.
    assert (done["loaded"], done["stored"]) == (want.loaded, want.stored)
    op("emulated", "standardize_channels_backward")(up, *found)
    done, want = counts(), standardized(x.numel(), 8, gradient=True)
    assert done["launches"] == 1
    assert (done["loaded"], done["stored"]) == (want.loaded, want.stored)
