"""Losses and slopes of rows of scores by the Triton kernel, against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from class_cases import check_class, make_class
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@pytest.mark.parametrize("classes", [1, 2, 5, 1025, 9000])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_against_float64(classes: int, scale: float) -> None:
    scores, labels = scale * torch.randn(5, classes), torch.randint(classes, (5,))
    offset, weight = torch.randn(classes), torch.tensor([1.0, -0.5, 2.0, 0.0, 3.0])
    for more in ((None, None), (offset, weight)):
        truth = scores.double().requires_grad_()
        total = truth if more[0] is None else truth + offset.double()
        want = torch.nn.functional.cross_entropy(total, labels, reduction="none")
        want = want if more[1] is None else want * weight.double()
        (slope,) = torch.autograd.grad(want.sum(), truth)
        slopes = torch.full_like(scores, torch.nan)
        losses = op("triton", "softmax_rows")(scores, labels, *more, slopes)
        torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slopes.double(), slope, rtol=2e-5, atol=1e-7)
        own = scores.clone()
        op("triton", "softmax_rows")(own, labels, *more, own)
        assert_same_bits(own, slopes)


def test_edges() -> None:
    scores = torch.tensor([[1.0, torch.nan, 2.0], [1.0, -torch.inf, 3.0], [1.0, 2.0, 3.0]])
    slopes = torch.empty_like(scores)
    losses = op("triton", "softmax_rows")(scores, torch.tensor([0, 2, 7]), None, None, slopes)
    assert losses[0].isnan() and slopes[0].isnan().all()
    assert losses[1].isfinite() and slopes[1, 1] == 0 and slopes[1].isfinite().all()
    assert losses[2].isnan() and slopes[2].isnan().all()


def test_confident_rows_keep_their_relative_accuracy() -> None:
    scores, slopes = torch.zeros(1, 2000), torch.zeros(1, 2000)
    scores[0, 3] = 60.0
    op("triton", "softmax_rows")(scores, torch.tensor([3]), None, None, slopes)
    small = 1 / (torch.tensor(60.0).double().exp() + 1999)
    torch.testing.assert_close(slopes[0, 0].double(), small, rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes[0, 3].double(), -1999 * small, rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["gaussian", "gaussian-precision", None])
def test_the_loss_through_matmul(family: str | None) -> None:
    case = make_class(family, batch=(3,), width=4, classes=1025, bias=torch.randn(1025))
    name = family or "gaussian"
    found = bk.backend_for("linear_cross_entropy", case.a, family=name, classes=1025)
    assert found == "triton-chunked"
    check_class(case)
