"""Gram loss and class means of the emulated CUDA kernels against the float64 oracle."""

from __future__ import annotations

import pytest
import torch
from emulated import counts, cuda, emulation  # noqa: F401
from gram_cases import check_gram, check_means, make_gram
from tolerance import assert_close, assert_same_bits

from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


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


@pytest.mark.parametrize("batch", [0, 1, 64, 65, 130])
@pytest.mark.parametrize("width", [0, 1, 33, 70])
def test_shapes(batch: int, width: int) -> None:
    """Tails in every direction, one row, several tiles and parts, no latents, no rows."""
    check_gram(make_gram(batch=batch, inner=(width,)))


def test_several_tiles_of_a_part() -> None:
    """One processor: fewer parts than tiles, and sums that go on from tile to tile."""
    with emulation(0, 1):
        case = make_gram(batch=200, inner=(9,))
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


def test_same_bits_in_every_order() -> None:
    case = make_gram(batch=70, inner=(40,))
    x, labels = torch.randn(300, 24), torch.randint(4, (300,))
    long = torch.randn(300, 256)
    results = []
    for order in (0, 1, 5):
        with emulation(order):
            value, (grad,) = case.call(True, case.x)
            means = op("emulated", "class_means")(x, labels, 5)
            sections = op("emulated", "class_means")(long, labels // 2, 2)
            results.append((value, grad, *means, *sections))
    for got in results[1:]:
        for one, other in zip(got, results[0], strict=True):
            assert_same_bits(one, other)


def test_launches() -> None:
    case = make_gram(batch=9, inner=(20,))
    vectors = case.with_options(target=torch.randn(9, 3), num_classes=None)
    for given, twin, launches in ((case, True, 4), (case, False, 3), (vectors, True, 5)):
        counts()
        given.call(twin, given.x)
        assert counts()["launches"] == launches
    op("emulated", "class_means")(torch.randn(50, 8), torch.randint(4, (50,)), 4)
    assert counts()["launches"] == 5
    op("emulated", "class_means")(torch.randn(200, 256), torch.randint(2, (200,)), 2)
    assert counts()["launches"] == 6


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [(), (1,), (7,), (64,), (600,), (3, 4), (0,)], ids=str)
def test_means(dtype: torch.dtype, inner: tuple[int, ...]) -> None:
    x = torch.randn(50, *inner).to(dtype)
    check_means(x, torch.randint(4, (50,)), 6, None)
    check_means(x[:1], torch.tensor([2]), 3, None)
    check_means(x[:0], torch.zeros(0, dtype=torch.int64), 3, None)
    check_means(x, torch.zeros(50, dtype=torch.int32), 1, None)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [130, 256, 600])
def test_means_of_sections(dtype: torch.dtype, width: int) -> None:
    """Of vectors and of single latents; of classes with few rows, and with almost all of them."""
    x = torch.randn(300, width).to(dtype)
    check_means(x, torch.randint(2, (300,)), 2, None)
    check_means(x, (torch.arange(300) > 297).long(), 3, None)
    x[7, 3], x[250, 4], x[8, 4], x[9, 5] = torch.inf, torch.inf, -torch.inf, torch.nan
    means, _ = op("emulated", "class_means")(x, torch.arange(300) // 260, 2)
    assert means[0, 3] == torch.inf and means[0, [4, 5]].isnan().all()
    assert means.isfinite().sum() == 2 * width - 3
    labels = torch.zeros(300, dtype=torch.int64)
    labels[5] = 2
    means, found = op("emulated", "class_means")(x, labels, 2)
    assert means.isnan().all() and found.tolist() == [299, 0]


def test_means_of_many_rows_keep_their_accuracy() -> None:
    """Of equal rows too, whose sums are all rounded to the same side."""
    two = torch.arange(3000) % 2
    for x in (1000 + torch.randn(3000, 2), (1 + torch.rand(256)).repeat(3000, 1)):
        for processors in (1, 3, 40):  # 2, 6 and 46 sections of the long rows
            with emulation(0, processors):
                means, found = op("emulated", "class_means")(x, two, 2)
            want = torch.stack((x[::2].double().mean(0), x[1::2].double().mean(0)))
            torch.testing.assert_close(means.double(), want, rtol=3e-7, atol=0)
            assert found.tolist() == [1500, 1500]


def test_means_of_no_latents() -> None:
    means, _ = op("emulated", "class_means")(torch.ones(9000, 0), torch.zeros(9000).long(), 1)
    assert means.shape == (1, 0)


def test_means_of_many_classes_and_of_many_rows() -> None:
    """Classes for warps and turns of the block that scans them, chunks for turns of a warp."""
    for rows, width, classes in ((300, 64, 200), (300, 256, 8300), (33_000, 1, 3)):
        check_means(torch.randn(rows, width), torch.randint(classes, (rows,)), classes, None)


def test_means_of_pooled_and_strided() -> None:
    check_means(torch.randn(6, 5, 7, 6), torch.randint(3, (6,)), 4, ("mean", 2))
    check_means(torch.randn(20, 8).t(), torch.randint(3, (8,)), 3, None)
    wide = torch.full((8, 20), torch.nan)
    check_means(wide[:, 1:17].copy_(torch.randn(8, 16)), torch.randint(3, (8,)), 3, None)


def test_infinite_rows() -> None:
    x = torch.ones(6, 2)
    x[1, 0], x[2, 1] = torch.inf, torch.nan
    means, _ = op("emulated", "class_means")(x, torch.tensor([0, 1, 2, 0, 1, 2]), 3)
    assert means[0].tolist() == [1, 1] and means[1].tolist() == [torch.inf, 1]
    assert means[2, 0] == 1 and means[2, 1].isnan()


def test_a_label_out_of_range_is_never_silent() -> None:
    for labels in ([0, 3, 1], [0, -1, 1], [0, 2**40, 1]):
        means, found = op("emulated", "class_means")(torch.ones(3, 2), torch.tensor(labels), 3)
        assert torch.isnan(means).all() and found.tolist() == [1, 1, 0]
        grad = op("emulated", "class_means_backward")(torch.ones(3, 2), torch.tensor(labels), found)
        assert torch.isnan(grad[1]).all() and (grad[[0, 2]] == 1).all()
