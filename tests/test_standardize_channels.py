"""standardize_channels: values and gradients against the definition in float64."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import DTYPES
from hypothesis import given
from hypothesis import strategies as st
from test_pool import KINDS, MEMORY
from tolerance import assert_close, assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

#: [B, C, ...]: one number a row, cells that fill no vector, more than a segment or a lane's turn.
SHAPES = [
    (2, 1), (7, 5), (64, 300), (40, 3, 4), (33, 5, 3, 3), (3, 70, 2, 2), (100, 6, 16), (5, 2, 257),
    (1, 4, 5, 2), (2, 3, 33, 32), (19, 9, 30), (600, 2),
]  # fmt: skip


def check_standardized(x: torch.Tensor, offset: float = 1.0) -> None:
    """Value and gradient; `offset` is how many deviations the mean is from 0."""
    source = x.detach().double().requires_grad_()
    want = oracle.standardize(source)
    up = torch.randn(want.shape, dtype=torch.float64)
    (want_grad,) = torch.autograd.grad(want, source, up)
    before = x.clone()
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    leaf = x.detach().requires_grad_()
    got = bk.standardize_channels(leaf)
    assert got.dtype == accumulate
    # A mean is known to the rounding of its numbers.
    scale = (1 + offset) * want.detach().abs().max()
    assert_close(got.detach(), want.detach(), dtype=x.dtype, scale=scale)
    assert_same_bits(bk.standardize_channels(x), got.detach())
    (grad,) = torch.autograd.grad(got, leaf, up.to(accumulate))
    assert grad.dtype == x.dtype
    factor = 1 / (source.detach().transpose(0, 1).flatten(1).var(1, correction=0) + 1e-5).sqrt()
    terms = (1 + offset) * up.abs().max() * factor.view(-1, *[1] * (x.dim() - 2))
    assert_close(grad, want_grad, dtype=x.dtype, scale=terms.expand(x.shape[1:]))
    assert_same_bits(x, before)


def check_odd_inputs() -> None:
    """Far means, strides, and nothing to standardise."""
    # Two passes, not the difference of two large sums.
    check_standardized(1000 + 0.1 * torch.randn(50, 4, 6), offset=1e4)
    base = torch.randn(6, 8, 10, 12)
    for x in (base[::2], base[:, ::2], base[..., ::3], base.transpose(0, 1), base.transpose(1, 3)):
        check_standardized(x)
    for shape in ((0, 3), (0, 3, 2, 2), (4, 0), (4, 0, 3), (4, 3, 0), (1, 0, 1)):
        x = torch.randn(shape, requires_grad=True)
        got = bk.standardize_channels(x)
        assert got.shape == shape
        (grad,) = torch.autograd.grad(got.sum(), x)
        assert grad.shape == shape


def check_nonfinite(shape: tuple[int, ...], row: int = 0) -> None:
    """What is not finite, from `row` on, stays in its channel, of four or more."""
    x = torch.randn(shape)
    x[row + 1, 1, 1], x[row + 2, 2, 2] = torch.nan, torch.inf
    x.requires_grad_()
    got = bk.standardize_channels(x)
    (grad,) = torch.autograd.grad(got.sum(), x)
    for found in (got, grad):
        assert torch.isnan(found[:, 1:3]).all()
        assert torch.isfinite(found[:, ::3]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dtypes_and_shapes(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    per_channel = torch.arange(1, shape[1] + 1).view(-1, *[1] * (len(shape) - 2))
    check_standardized((per_channel * (torch.randn(shape) + 1)).to(dtype))


def test_odd_inputs(backend: str) -> None:
    check_odd_inputs()
    scale = op(backend, "standardize_channels")(torch.randn(0, 3), 3, 0.1)[1]
    assert scale.tolist() == [0, 0, 0]
    for x in (torch.randn(1, 5), torch.randn(1, 5, 1, 1)):
        with pytest.raises(ValueError, match="standardize: expected two values or more of each"):
            bk.standardize_channels(x)


def test_constant_channels(backend: str) -> None:
    x = torch.randn(9, 3, 4)
    x[:, 1] = 0.7
    check_standardized(x)
    constant = torch.full((8, 2), 5.0, requires_grad=True)
    flat = bk.standardize_channels(constant)
    assert flat.abs().max() < 1e-3
    (grad,) = torch.autograd.grad(flat.sum(), constant)
    assert grad.abs().max() < 1e-3


def test_broadcast_upstream(backend: str) -> None:
    leaf = torch.randn(6, 8, 10, requires_grad=True)
    upstream = torch.randn(1, 1, 1).expand(6, 8, 10)
    (grad,) = torch.autograd.grad(bk.standardize_channels(leaf), leaf, upstream)
    assert grad.abs().max() < 1e-4 * upstream.abs().max()


def test_nonfinite_numbers(backend: str) -> None:
    check_nonfinite((5, 4, 3))


def test_no_loss_pulls_at_scale_or_mean(backend: str) -> None:
    x = torch.randn(20, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(20, 6, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad((bk.standardize_channels(x) * weights).sum(), x)
    centred = (x - x.mean((0, 2), keepdim=True)).detach()
    assert grad.abs().sum() > 1
    assert grad.sum((0, 2)).abs().max() < 1e-12 * grad.abs().sum()
    assert (grad * centred).sum((0, 2)).abs().max() < 1e-4 * (grad * centred).abs().sum()


def test_gradcheck(backend: str) -> None:
    x = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(bk.standardize_channels, (x,))
    squares = bk.standardize_channels(x).square().sum()
    (grad,) = torch.autograd.grad(squares, x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once"):
        grad.sum().backward()


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_behind_pooling(backend: str, kind: str, memory: str, dtype: torch.dtype) -> None:
    """Also where every cell is one pixel."""
    for grid, size in ((2, (5, 6)), (3, (3, 3)), (1, (4, 4))):
        x = torch.randn(6, 5, *size).to(dtype).to(memory_format=MEMORY[memory])
        source = x.double().requires_grad_()
        cells = oracle.grid_pool(source, kind, grid).unflatten(1, (5, -1))
        want = oracle.standardize(cells).flatten(1)
        up = torch.randn(want.shape, dtype=torch.float64)
        (want_grad,) = torch.autograd.grad(want, source, up)
        leaf = x.requires_grad_()
        got = bk.grid_pool(leaf, kind, grid, standardize=True)
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        (grad,) = torch.autograd.grad(got, leaf, up.to(accumulate))
        # A deviation's own rounding is divided by the spread of deviations.
        scale = 20.0 if kind == "std" else 4.0
        assert_close(got.detach(), want.detach(), dtype=dtype, scale=scale)
        assert_close(grad, want_grad, dtype=dtype, scale=scale * want_grad.abs().max())


def test_threads_do_not_change_bits(backend: str, threads: None) -> None:
    for shape in ((300, 70, 9), (64, 3, 1000), (5000, 40)):
        x, up = torch.randn(shape), torch.randn(shape).flatten(1)
        results = []
        for count in (2, 2) if backend == "reference" else (1, 2, 2):
            torch.set_num_threads(count)
            found = op(backend, "standardize_channels")(x.flatten(1), shape[1], 1e-5)
            results.append((*found, op(backend, "standardize_channels_backward")(up, *found)))
        for result in results[1:]:
            for got, want in zip(result, results[0], strict=True):
                assert_same_bits(got, want)


@pytest.mark.slow
@given(
    batch=st.integers(1, 40),
    channels=st.integers(1, 40),
    inner=st.lists(st.integers(1, 9), max_size=2),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**30),
)
def test_random_cases(
    backend: str, batch: int, channels: int, inner: list[int], dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(batch, channels, *inner).to(dtype)
    if x.numel() > channels:
        check_standardized(x)
