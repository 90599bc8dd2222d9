"""grid_pool: values and gradients against torch's adaptive pooling and explicit cells."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import DTYPES
from tolerance import assert_close, assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

KINDS = ("mean", "max", "std")
every_kind = pytest.mark.parametrize("kind", KINDS)
MEMORY = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def check_pool(x: torch.Tensor, kind: str, grid: int, gradient: bool = True) -> None:
    source = x.detach().double().requires_grad_()
    want = oracle.grid_pool(source, kind, grid)
    up = torch.randn(want.shape, dtype=torch.float64)
    (want_grad,) = torch.autograd.grad(want, source, up)

    before = x.clone()
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    leaf = x.detach().requires_grad_()
    got = bk.grid_pool(leaf, kind, grid)
    assert got.dtype == accumulate
    scale = 1 + source.detach().abs().max() if x.numel() else 1.0
    assert_close(got.detach(), want.detach(), dtype=x.dtype, scale=scale)
    assert_close(bk.grid_pool(x, kind, grid), want.detach(), dtype=x.dtype, scale=scale)
    if gradient:
        (grad,) = torch.autograd.grad(got, leaf, up.to(accumulate))
        assert grad.dtype == x.dtype
        scale = up.abs().max() * grid if x.numel() else 1.0
        assert_close(grad, want_grad, dtype=x.dtype, scale=scale)
    assert_same_bits(x, before)


@every_kind
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_dtypes_and_layouts(
    backend: str, kind: str, memory: str, dtype: torch.dtype, grid: int
) -> None:
    x = torch.randn(2, 5, 8, 12).to(dtype).to(memory_format=MEMORY[memory])
    check_pool(x, kind, grid)


SIZES = [(1, 1), (1, 5), (2, 2), (3, 5), (7, 7), (9, 4), (13, 2), (14, 14), (32, 31)]


@every_kind
@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_any_size(backend: str, kind: str, memory: str, size: tuple[int, int]) -> None:
    for grid in (1, 2, 3, 4, 5):
        for channels in (1, 3, 19):
            x = torch.randn(2, channels, *size).to(memory_format=MEMORY[memory])
            check_pool(x, kind, grid)


@every_kind
def test_rows_of_many_channels(backend: str, kind: str) -> None:
    """More than the first-level cache holds of a row of channels-last pixels."""
    for grid in (1, 3):
        check_pool(torch.randn(1, 290, 4, 31).to(memory_format=torch.channels_last), kind, grid)


@every_kind
def test_gradient_has_the_memory_layout_of_the_map(backend: str, kind: str) -> None:
    for memory in MEMORY.values():
        x = torch.randn(2, 3, 6, 6).to(memory_format=memory)
        up = torch.randn(2, 3 * 4)
        grad = op(backend, "grid_pool_backward")(up, x, kind, 2)
        assert grad.is_contiguous(memory_format=memory)


@every_kind
def test_other_strides(backend: str, kind: str) -> None:
    base = torch.randn(2, 6, 10, 12)
    for x in (
        base[:, ::2],
        base[:, :, 1:9, 2:],
        base[..., ::3],
        base.transpose(2, 3),
        base.transpose(0, 1),
        base[:1].expand(4, -1, -1, -1),
        base[:, :1].expand(-1, 4, -1, -1),
    ):
        check_pool(x, kind, 2)


@every_kind
def test_no_maps(backend: str, kind: str) -> None:
    check_pool(torch.randn(0, 3, 4, 4), kind, 2)
    x = torch.randn(2, 0, 4, 4, requires_grad=True)
    pooled = bk.grid_pool(x, kind, 2)
    assert pooled.shape == (2, 0)
    (grad,) = torch.autograd.grad(pooled.sum(), x)
    assert grad.shape == x.shape


def test_std_of_constant_and_single_pixel_cells(backend: str) -> None:
    for memory in MEMORY.values():
        x = torch.full((1, 3, 4, 4), 0.7)
        x[0, 1, :2, :2] = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        x = x.to(memory_format=memory).requires_grad_()
        pooled = bk.grid_pool(x, "std", 2)
        assert (pooled[0, :4] == 0).all() and (pooled[0, 8:] == 0).all()
        assert pooled[0, 4] > 1
        pooled.sum().backward()
        assert torch.isfinite(x.grad).all()
        assert (x.grad[0, 0] == 0).all() and (x.grad[0, 1, :2, :2] != 0).all()
        pixels = torch.randn(2, 3, 4, 4).to(memory_format=memory).requires_grad_()
        pooled = bk.grid_pool(pixels, "std", 4)
        assert (pooled == 0).all()
        (grad,) = torch.autograd.grad(pooled.sum(), pixels)
        assert (grad == 0).all()


def test_std_of_a_large_offset(backend: str) -> None:
    """Two passes, not the difference of two large sums."""
    x = 1000 + 0.01 * torch.randn(4, 8, 16, 16)
    want = oracle.grid_pool(x.double(), "std", 2)
    got = bk.grid_pool(x, "std", 2)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=0)


def test_first_maximum_gets_the_gradient(backend: str) -> None:
    for memory in MEMORY.values():
        x = torch.ones(2, 3, 4, 4).to(memory_format=memory).requires_grad_()
        bk.grid_pool(x, "max", 2).sum().backward()
        want = torch.zeros(4, 4)
        want[::2, ::2] = 1
        assert torch.equal(x.grad, want.expand(2, 3, 4, 4))


@every_kind
@pytest.mark.parametrize("memory", MEMORY)
def test_nan_and_infinity(backend: str, kind: str, memory: str) -> None:
    x = torch.randn(1, 4, 4, 4)
    x[0, 0, 0, 1], x[0, 1, 1, 1], x[0, 2, 3, 3] = torch.nan, torch.inf, -torch.inf
    x = x.to(memory_format=MEMORY[memory])
    want = oracle.grid_pool(x.double(), kind, 2)
    got = bk.grid_pool(x, kind, 2)
    if kind == "std":  # not defined by the formula; only clean cells must stay clean
        assert torch.isfinite(got[torch.isfinite(oracle.grid_pool(x.double(), "mean", 2))]).all()
        assert not torch.isfinite(got[0, 0])
    else:
        torch.testing.assert_close(got.double(), want, equal_nan=True, rtol=1e-5, atol=1e-6)


@every_kind
@pytest.mark.parametrize("memory", MEMORY)
def test_threads_do_not_change_bits(backend: str, threads: None, kind: str, memory: str) -> None:
    x = torch.randn(16, 24, 28, 28).to(memory_format=MEMORY[memory])
    up = torch.randn(16, 24 * 16)
    results = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        results.append(
            (
                op(backend, "grid_pool")(x, kind, 4),
                op(backend, "grid_pool_backward")(up, x, kind, 4),
            )
        )
    for pooled, grad in results[1:]:
        assert_same_bits(pooled, results[0][0])
        assert_same_bits(grad, results[0][1])
