"""Grid pooling of the emulated CUDA kernels against explicit cells in float64."""

from __future__ import annotations

import oracle
import pytest
import torch
from emulated import counts, cuda, emulation  # noqa: F401
from test_pool import KINDS, MEMORY, check_pool
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_memory = pytest.mark.parametrize("memory", MEMORY)


@every_kind
@every_memory
def test_dtypes(kind: str, memory: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for channels, height in ((8, 8), (5, 7)):
            x = torch.randn(3, channels, height, 12).to(dtype).to(memory_format=MEMORY[memory])
            for grid in (1, 2, 4):
                check_pool(x, kind, grid)


@every_kind
@every_memory
@pytest.mark.parametrize("size", [(1, 1), (1, 5), (3, 5), (13, 2), (17, 18)], ids=str)
def test_any_size(kind: str, memory: str, size: tuple[int, int]) -> None:
    """Overlapping cells, more cells than pixels, channels that fill no block."""
    for grid, channels in ((1, 1), (2, 19), (3, 70), (5, 3)):
        x = torch.randn(1, channels, *size)
        check_pool(x.to(memory_format=MEMORY[memory]), kind, grid)


@every_kind
@every_memory
def test_cells_that_fill_a_block_and_planes_that_fill_several(kind: str, memory: str) -> None:
    check_pool(torch.randn(1, 2, 70, 66).to(memory_format=MEMORY[memory]), kind, 1)
    check_pool(torch.randn(2, 300, 4, 4).to(memory_format=MEMORY[memory]), kind, 2)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("size", "grid", "barriers"), [(20, 10, 0), (12, 4, 0), (30, 1, 2), (24, 2, 2), (60, 3, 10)]
)
def test_who_shares_a_cell_of_many_channels(
    kind: str, dtype: torch.dtype, size: int, grid: int, barriers: int
) -> None:
    """A run of lanes, several of a warp, or warps, which alone meet at barriers: of one or several
    cells at a time, also fewer than there is room for."""
    x = torch.randn(1, 72, size, size).to(dtype).to(memory_format=torch.channels_last)
    counts()
    op("emulated", "grid_pool")(x, kind, grid)
    done = counts()
    # A block has 128 bytes of channels.
    assert done["blocks"] == -(-72 * dtype.itemsize // 128)
    assert done["barriers"] == done["blocks"] * barriers
    check_pool(x, kind, grid)


@every_kind
def test_strides_layouts_and_no_maps(kind: str) -> None:
    base = torch.randn(2, 6, 10, 12)
    views = (base[:, ::2], base[:, :, 1:9, 2:], base.transpose(2, 3), base.transpose(0, 1))
    for x in (*views, base[:, :1].expand(-1, 4, -1, -1), torch.randn(0, 3, 4, 4)):
        check_pool(x, kind, 2)
    misaligned = torch.randn(2 * 8 * 4 * 4 + 1)[1:].reshape(2, 8, 4, 4)
    check_pool(misaligned, kind, 2)
    for memory in MEMORY.values():
        x = torch.randn(2, 3, 6, 6).to(memory_format=memory)
        grad = op("emulated", "grid_pool_backward")(torch.randn(2, 12), x, kind, 2)
        assert grad.is_contiguous(memory_format=memory)


@every_memory
def test_std_of_constant_and_single_pixel_cells(memory: str) -> None:
    x = torch.full((1, 3, 4, 4), 0.7)
    x[0, 1, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    x = x.to(memory_format=MEMORY[memory]).requires_grad_()
    pooled = bk.grid_pool(x, "std", 2)
    assert (pooled[0, :4] == 0).all() and (pooled[0, 8:] == 0).all() and pooled[0, 4] > 1
    (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert (grad[0, 0] == 0).all() and (grad[0, 1, :2, :2] != 0).all()
    pixels = torch.randn(2, 3, 4, 4).to(memory_format=MEMORY[memory]).requires_grad_()
    (grad,) = torch.autograd.grad(bk.grid_pool(pixels, "std", 4).sum(), pixels)
    assert (grad == 0).all()
    large = (1000 + 0.01 * torch.randn(2, 3, 16, 16)).to(memory_format=MEMORY[memory])
    want = oracle.grid_pool(large.double(), "std", 2)
    torch.testing.assert_close(bk.grid_pool(large, "std", 2).double(), want, rtol=1e-3, atol=0)


@every_memory
def test_first_maximum_and_nan(memory: str) -> None:
    x = torch.ones(2, 3, 12, 12).to(memory_format=MEMORY[memory]).requires_grad_()
    (grad,) = torch.autograd.grad(bk.grid_pool(x, "max", 2).sum(), x)
    want = torch.zeros(12, 12)
    want[::6, ::6] = 1
    assert torch.equal(grad, want.expand(2, 3, 12, 12))
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 0, 1], x[0, 1, 1, 1], x[0, 2, 2:, 2:] = torch.nan, torch.inf, -torch.inf
    x[0, 0, 1, 0] = torch.nan
    x = x.to(memory_format=MEMORY[memory]).requires_grad_()
    for kind in ("mean", "max"):
        pooled = bk.grid_pool(x, kind, 2)
        want = oracle.grid_pool(x.detach().double(), kind, 2)
        close = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(pooled.detach().double(), want, **close)
    (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert grad[0, 0, 0, 1] == 1 and grad.sum() == 16
    assert bk.grid_pool(x, "std", 2)[0, 0].isnan()


@every_kind
@every_memory
def test_same_bits_in_every_order(kind: str, memory: str) -> None:
    x = torch.randn(2, 9, 11, 10).to(memory_format=MEMORY[memory])
    up = torch.randn(2, 9 * 9)
    results = []
    for order in (0, 1, 5):
        with emulation(order):
            pooled = op("emulated", "grid_pool")(x, kind, 3)
            results.append((pooled, op("emulated", "grid_pool_backward")(up, x, kind, 3)))
    for got in results[1:]:
        for one, other in zip(got, results[0], strict=True):
            assert_same_bits(one, other)


@every_kind
@every_memory
def test_traffic(kind: str, memory: str) -> None:
    """Disjoint cells: one launch and one read; the gradient reads nothing of a map for the mean."""
    x = torch.randn(4, 32, 8, 8).to(memory_format=MEMORY[memory])
    for grid in (1, 2, 4):
        counts()
        op("emulated", "grid_pool")(x, kind, grid)
        done = counts()
        assert (done["launches"], done["loaded"]) == (1, 4 * x.numel())
        op("emulated", "grid_pool_backward")(torch.randn(4, 32 * grid**2), x, kind, grid)
        done = counts()
        reads = {"mean": 0, "max": 1, "std": 2}[kind]
        assert (done["launches"], done["loaded"]) == (1, reads * 4 * x.numel())
