"""Grid pooling of the Triton kernels against explicit cells in float64."""

from __future__ import annotations

from collections.abc import Iterator

import oracle
import pytest
import torch
from class_cases import check_class, make_class
from test_pool import KINDS, MEMORY, check_pool

import bll_kernels as bk
from bll_kernels.backends.triton.launch import pool_tile, spread_tile
from bll_kernels.backends.triton.pool import reach
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")

every_kind = pytest.mark.parametrize("kind", KINDS)
every_memory = pytest.mark.parametrize("memory", MEMORY)


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@every_kind
@every_memory
def test_dtypes(kind: str, memory: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x = torch.randn(2, 5, 8, 12).to(dtype).to(memory_format=MEMORY[memory])
        check_pool(x, kind, 2)


@every_kind
@every_memory
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (13, 2), (17, 18)], ids=str)
def test_any_size(kind: str, memory: str, size: tuple[int, int]) -> None:
    for grid, channels in ((1, 1), (2, 19), (3, 70)):
        x = torch.randn(1, channels, *size)
        check_pool(x.to(memory_format=MEMORY[memory]), kind, grid)


@every_kind
def test_strides_layouts_and_no_maps(kind: str) -> None:
    base = torch.randn(2, 6, 10, 12)
    views = (base[:, ::2], base[:, :, 1:9, 2:], base.transpose(2, 3), base.transpose(0, 1))
    for x in (*views, base[:, :1].expand(-1, 4, -1, -1), torch.randn(0, 3, 4, 4)):
        check_pool(x, kind, 2)
    for memory in MEMORY.values():
        x = torch.randn(2, 3, 6, 6).to(memory_format=memory)
        grad = op("triton", "grid_pool_backward")(torch.randn(2, 12), x, kind, 2)
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
    x = torch.ones(2, 3, 4, 4).to(memory_format=MEMORY[memory]).requires_grad_()
    (grad,) = torch.autograd.grad(bk.grid_pool(x, "max", 2).sum(), x)
    want = torch.zeros(4, 4)
    want[::2, ::2] = 1
    assert torch.equal(grad, want.expand(2, 3, 4, 4))
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 0, 1], x[0, 1, 1, 1], x[0, 2, 2:, 2:] = torch.nan, torch.inf, -torch.inf
    x = x.to(memory_format=MEMORY[memory]).requires_grad_()
    for kind in ("mean", "max"):
        pooled = bk.grid_pool(x, kind, 2)
        want = oracle.grid_pool(x.detach().double(), kind, 2)
        close = {"equal_nan": True, "rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(pooled.detach().double(), want, **close)
    (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert grad[0, 0, 0, 1] == 1 and grad.sum() == 16


def test_in_front_of_losses() -> None:
    for kind in KINDS:
        for memory in MEMORY.values():
            x = torch.randn(3, 5, 7, 6).to(memory_format=memory)
            case = make_class(None, batch=(3,), width=20, pool=(kind, 2))
            check_class(case.with_options(a=x.bfloat16(), table=case.table.bfloat16()))


def test_tables() -> None:
    assert [reach(8, g) for g in (1, 2, 3, 8, 16)] == [1, 1, 2, 1, 2]
    assert pool_tile(1, False) == (64, 1, 4)
    assert pool_tile(10**4, False) == (4, 256, 4)
    assert pool_tile(10**4, True) == (64, 16, 4)
    assert spread_tile(49, False) == (16, 64, 4)
    assert spread_tile(49, True) == (64, 16, 4)
