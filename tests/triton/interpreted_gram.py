"""Gram loss and class means of the Triton kernels against the float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from gram_cases import check_gram, check_means, make_gram
from tolerance import assert_close, assert_same_bits

import bll_kernels as bk
from bll_kernels.backends.triton.launch import gram_parts, sections, table_tile
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_dtypes_and_targets(dtype: torch.dtype, center: bool) -> None:
    case = make_gram(dtype=dtype, center=center)
    check_gram(case)
    check_gram(case.with_options(label_gram="equal"))
    check_gram(case.with_options(target="identity", num_classes=None))
    check_gram(case.with_options(target=torch.randn(9, 70), num_classes=None))


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_options(reduction: str) -> None:
    weight = torch.linspace(-0.5, 2, 9)
    check_gram(make_gram(reduction=reduction, weight=weight))
    vectors = torch.randn(9, 3)
    check_gram(make_gram(reduction=reduction).with_options(target=vectors, num_classes=None))


@pytest.mark.parametrize(
    ("batch", "width"), [(0, 8), (1, 8), (5, 0), (2, 1), (33, 65), (40, 130), (7, 1030)]
)
def test_shapes(batch: int, width: int) -> None:
    """Tails in every direction, one row, several parts and tiles of a part, no latents."""
    check_gram(make_gram(batch=batch, inner=(width,)))
    check_gram(make_gram(batch=batch, inner=(width,), center=False, reduction="none"))


def test_many_rows() -> None:
    """Several parts of two tiles, the last one short."""
    case = make_gram(batch=270, inner=(5,))
    assert gram_parts(270) == 5
    truth = case.x.double().requires_grad_()
    (want,) = torch.autograd.grad(case.oracle(truth), truth)
    value, (grad,) = case.call(True, case.x)
    assert_close(value, case.oracle(case.x.double()), scale=1.0)
    assert_close(grad, want)


def test_rows_without_direction() -> None:
    for center, filling in ((False, 0.0), (True, 0.1), (True, 1000.3)):
        case = make_gram(center=center, inner=(13,), reduction="none")
        case.x[2], case.x[5] = filling, filling
        check_gram(case)
        _, (grad,) = case.call(True, case.x)
        assert (grad[[2, 5]] == 0).all()
        case.x[3, 4] = torch.nan
        value, (grad,) = case.call(True, case.x)
        assert torch.isnan(value).all() and (grad[2] == 0).all() and torch.isnan(grad[0]).all()


def test_scale_and_offset_do_not_matter() -> None:
    case = make_gram(batch=6, inner=(40,))
    want = case.call(False, case.x)
    for factor in (1e-30, 1e30):
        torch.testing.assert_close(case.call(False, case.x * factor), want)
    check_gram(case.with_options(x=case.x + 1000))


def test_pool_strides_and_upstream() -> None:
    x = torch.randn(6, 5, 7, 6).to(memory_format=torch.channels_last)
    check_gram(make_gram(batch=6, pool=("std", 2)).with_options(x=x))
    outer = torch.full((11, 26), torch.nan)
    outer[1:10, 3:23] = torch.randn(9, 20)
    check_gram(make_gram().with_options(x=outer[1:10, 3:23]))
    check_gram(make_gram().with_options(x=torch.randn(12, 9).t()))


def test_same_bits_every_time() -> None:
    case = make_gram(batch=70, inner=(40,))
    first, again = case.call(True, case.x), case.call(True, case.x)
    assert_same_bits(first[0], again[0])
    assert_same_bits(first[1][0], again[1][0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [(), (1,), (7,), (600,), (3, 4), (0,)], ids=str)
def test_means(dtype: torch.dtype, inner: tuple[int, ...]) -> None:
    x = torch.randn(50, *inner).to(dtype)
    check_means(x, torch.randint(4, (50,)), 6, None)
    check_means(x[:1], torch.tensor([2]), 3, None)
    check_means(x[:0], torch.zeros(0, dtype=torch.int64), 3, None)
    check_means(x, torch.zeros(50, dtype=torch.int32), 1, None)


@pytest.mark.parametrize(
    ("shape", "parts", "dtype"),
    [((70, 300), 5, DTYPES[0]), ((600, 100), 19, DTYPES[1]), ((400, 30), 4, DTYPES[2])],
    ids=str,
)
def test_means_of_sections(shape: tuple[int, int], parts: int, dtype: torch.dtype) -> None:
    """Few and many sections of every class; one class, or most rows in one."""
    tile = table_tile(shape[1], False)
    assert sections(shape[0], 3, -(-shape[1] // tile.columns), tile) == parts
    x, labels = (torch.randn(shape) + 3).to(dtype), torch.randint(3, shape[:1])
    check_means(x, labels, 3, None)
    labels[10:] = 1
    check_means(x, labels, 3, None)
    check_means(x, torch.zeros_like(labels), 1, None)


def test_means_of_pooled_and_strided() -> None:
    check_means(torch.randn(6, 5, 7, 6), torch.randint(3, (6,)), 4, ("mean", 2))
    check_means(torch.randn(20, 8).t(), torch.randint(3, (8,)), 3, None)


def test_a_label_out_of_range_is_never_silent() -> None:
    many = torch.ones(70, 300)
    means, counts = op("triton", "class_means")(many, torch.arange(70) % 4, 3)
    assert torch.isnan(means).all() and counts.tolist() == [18, 18, 17]
    for labels in ([0, 3, 1], [0, -1, 1], [0, 2**40, 1]):
        means, counts = op("triton", "class_means")(torch.ones(3, 2), torch.tensor(labels), 3)
        assert torch.isnan(means).all() and counts.tolist() == [1, 1, 0]
        grad = op("triton", "class_means_backward")(torch.ones(3, 2), torch.tensor(labels), counts)
        assert torch.isnan(grad[1]).all() and (grad[[0, 2]] == 1).all()


def test_parts_are_a_table() -> None:
    assert [gram_parts(rows) for rows in (1, 32, 33, 300, 1024, 10**6)] == [1, 1, 2, 5, 8, 1]
