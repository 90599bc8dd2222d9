"""Standardised channels of the Triton kernels against the definition in float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interpreted_table import Memory
from test_standardize_channels import check_nonfinite, check_odd_inputs, check_standardized
from triton.runtime import interpreter

import bll_kernels as bk
from bll_kernels.backends.triton import launch
from bll_kernels.backends.triton.launch import channel_merge, channel_parts, channel_tile
from bll_kernels.ops import op

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


@pytest.fixture
def divided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one tile of rows."""
    monkeypatch.setattr(launch, "CHANNEL_NUMBERS", 2)


#: [B, C, ...] and how many rows the last of its parts of one tile has.
PARTED = [
    ((65, 40), 1), ((200, 5), 8), ((130, 3, 16), 2), ((70, 5, 9), 6), ((64, 2, 3, 11), 32),
    ((17, 2, 300), 1), ((2, 1, 2000), 2), ((2100, 5), 52),
]  # fmt: skip


@pytest.mark.usefixtures("divided")
@pytest.mark.parametrize(("shape", "last"), PARTED, ids=str)
def test_parts(shape: tuple[int, ...], last: int) -> None:
    """Short last parts; more parts than are merged at a time; a mean 10,000 deviations away."""
    x = torch.randn(shape)
    rows, channels = shape[:2]
    tile = channel_tile(x[0, 0].numel())
    parts, share = channel_parts(rows, channels, x[0].numel())
    assert (parts, rows - (parts - 1) * share) == (-(-rows // tile.rows), last)
    assert (parts > channel_merge(tile)) == (rows > 1000)
    check_standardized(1000 + 0.1 * x, offset=1e4)
    if rows < 1000:
        check_standardized((2 * x + 1).bfloat16())


@pytest.mark.usefixtures("divided")
def test_odd_inputs_in_parts() -> None:
    for row in (0, 60):  # of either part
        check_nonfinite((70, 4, 3), row)
    x = torch.randn(150, 3, 4)
    x[:, 1] = 0.7
    x[:70, 2] -= 100  # parts of different means
    check_standardized(x, offset=10)
    check_standardized(torch.randn(150, 3, 8)[..., ::2])


@pytest.mark.parametrize("shape", [(40, 3, 1024), (1100, 40)], ids=str)
def test_sizes_that_are_divided(shape: tuple[int, ...]) -> None:
    assert channel_parts(shape[0], shape[1], torch.Size(shape[1:]).numel())[0] == 3
    check_standardized(1e4 + torch.randn(shape), offset=1e4)


@pytest.mark.parametrize("numbers", [2, launch.CHANNEL_NUMBERS])
def test_every_number_is_loaded_twice(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """In one launch and in two."""
    monkeypatch.setattr(launch, "CHANNEL_NUMBERS", numbers)
    x, grad = torch.randn(130, 5 * 18), torch.randn(130, 5 * 18)

    def loads(operand: torch.Tensor, name: str, *arguments: object) -> tuple[torch.Tensor, int]:
        memory = Memory(interpreter._interpreter, [operand])
        with monkeypatch.context() as patch:
            patch.setattr(interpreter, "_interpreter", memory)
            found = op("triton", name)(*arguments)
        return found, memory.elements

    (standardized, scale), elements = loads(x, "standardize_channels", x, 5, 1e-5)
    assert elements == 2 * x.numel()
    for operand in (grad, standardized):
        arguments = (grad, standardized, scale)
        _, elements = loads(operand, "standardize_channels_backward", *arguments)
        assert elements == 2 * x.numel()


def test_parts_are_a_table() -> None:
    assert channel_parts(128, 64, 64 * 16) == (1, 128)
    assert channel_parts(128, 3, 3 * 1024) == (8, 16)
    assert channel_parts(10**6, 64, 64) == (253, 3968)
    for rows in (1, 7, 33, 10**4, 10**6 + 1):
        for channels, cells in ((1, 1), (3, 1024), (64, 16), (2048, 49), (5, 10**5)):
            parts, share = channel_parts(rows, channels, channels * cells)
            assert (parts - 1) * share < rows <= parts * share
            groups = -(-channels // channel_tile(cells).group)
            assert parts == 1 or (parts <= 256 and parts * groups < launch.BUSY + groups)


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
