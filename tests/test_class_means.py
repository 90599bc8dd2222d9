"""class_means against a one-hot product in float64."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES
from gram_cases import check_means
from hypothesis import given
from hypothesis import strategies as st
from tolerance import assert_same_bits

import bll_kernels as bk

pytestmark = pytest.mark.usefixtures("poisoned")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("inner", [(), (1,), (7,), (600,), (3, 4), (2, 3, 5), (0,)], ids=str)
def test_dtypes_and_shapes(backend: str, dtype: torch.dtype, inner: tuple[int, ...]) -> None:
    x = torch.randn(50, *inner).to(dtype)
    check_means(x, torch.randint(4, (50,)), 6, None)
    check_means(x[:1], torch.tensor([2]), 3, None)
    check_means(x[:0], torch.zeros(0, dtype=torch.int64), 3, None)
    check_means(x, torch.zeros(50, dtype=torch.int32), 1, None)


def test_absent_classes_are_zero(backend: str) -> None:
    means, counts = bk.class_means(torch.ones(3, 2), torch.tensor([4, 4, 1]), 6)
    assert counts.tolist() == [0, 1, 0, 0, 2, 0]
    assert means.tolist() == [[0, 0], [1, 1], [0, 0], [0, 0], [1, 1], [0, 0]]


def test_nonfinite_samples_stay_in_their_class(backend: str) -> None:
    x = torch.zeros(4, 3)
    x[1, 1], x[2, 2] = torch.nan, torch.inf
    means, _ = bk.class_means(x, torch.tensor([0, 1, 2, 0]), 3)
    assert torch.isfinite(means[0]).all()
    assert torch.isnan(means[1, 1]) and torch.isinf(means[2, 2])


@pytest.mark.parametrize("kind", ["mean", "max", "std"])
def test_pooled_map_in_front(backend: str, kind: str) -> None:
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(6, 5, 7, 6).to(memory_format=memory)
        check_means(x, torch.randint(3, (6,)), 4, (kind, 2))
        check_means(x, torch.randint(3, (6,)), 4, None)


def test_strided_rows(backend: str) -> None:
    outer = torch.full((11, 26), torch.nan)
    outer[2:10, 3:23] = torch.randn(8, 20)
    labels = torch.randint(3, (8,))
    check_means(outer[2:10, 3:23], labels, 3, None)
    check_means(torch.randn(20, 8).t(), labels, 3, None)
    check_means(torch.randn(1, 20).expand(8, 20), labels, 3, None)


def test_gradcheck(backend: str) -> None:
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 3, 3, 1, 0, 3])
    assert torch.autograd.gradcheck(lambda z: bk.class_means(z, labels, 5)[0], (x,))


def test_same_bits_on_any_number_of_threads(backend: str, threads: None) -> None:
    x, labels = torch.randn(2000, 700).bfloat16(), torch.randint(7, (2000,))
    results = []
    for count in [2, 2] if backend == "reference" else [1, 2, 1, 2]:
        torch.set_num_threads(count)
        results.append(bk.class_means(x, labels, 8)[0])
    for means in results[1:]:
        assert_same_bits(means, results[0])


@pytest.mark.slow
@given(
    batch=st.one_of(st.integers(0, 20), st.just(70)),
    inner=st.lists(st.integers(0, 9), max_size=3),
    classes=st.integers(1, 9),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**30),
)
def test_random_cases(
    backend: str, batch: int, inner: list[int], classes: int, dtype: torch.dtype, seed: int
) -> None:
    torch.manual_seed(seed)
    check_means(
        torch.randn(batch, *inner).to(dtype), torch.randint(classes, (batch,)), classes, None
    )
