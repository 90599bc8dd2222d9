"""Losses and slopes of rows of scores by the emulated CUDA kernel, against float64."""

from __future__ import annotations

import pytest
import torch
from class_cases import check_class, make_class
from emulated import counts, cuda, emulation  # noqa: F401
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")


def run(scores, labels, offset=None, weight=None, slopes=None):  # type: ignore[no-untyped-def]
    slopes = torch.full_like(scores, torch.nan) if slopes is None else slopes
    return op("emulated", "softmax_rows")(scores, labels, offset, weight, slopes), slopes


@pytest.mark.parametrize("classes", [1, 2, 5, 1025, 2052, 4099])
@pytest.mark.parametrize("scale", [0.1, 30.0])
def test_against_float64(classes: int, scale: float) -> None:
    scores, labels = scale * torch.randn(5, classes), torch.randint(classes, (5,))
    offset, weight = torch.randn(classes), torch.tensor([1.0, -0.5, 2.0, 0.0, 3.0])
    for more in ({}, {"offset": offset, "weight": weight}):
        truth = scores.double().requires_grad_()
        total = truth + (offset.double() if more else 0)
        want = torch.nn.functional.cross_entropy(total, labels, reduction="none")
        want = want * (weight.double() if more else 1)
        (slope,) = torch.autograd.grad(want.sum(), truth)
        losses, slopes = run(scores, labels, **more)
        torch.testing.assert_close(losses.double(), want, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(slopes.double(), slope, rtol=2e-5, atol=1e-7)
        own = scores.clone()
        again, _ = run(own, labels, **more, slopes=own)
        assert_same_bits(own, slopes)
        assert_same_bits(again, losses)
        for dtype in (torch.bfloat16, torch.float16):
            half = torch.empty(5, classes, dtype=dtype)
            run(scores, labels, **more, slopes=half)
            assert_same_bits(half, slopes.to(dtype))


def test_edges() -> None:
    scores = torch.tensor([[1.0, torch.nan, 2.0], [1.0, -torch.inf, 3.0], [1.0, 2.0, 3.0]])
    losses, slopes = run(scores, torch.tensor([0, 2, 7]))
    assert losses[0].isnan() and slopes[0].isnan().all()
    assert losses[1].isfinite() and slopes[1, 1] == 0 and slopes[1].isfinite().all()
    assert losses[2].isnan() and slopes[2].isnan().all()
    losses, slopes = run(torch.tensor([[-torch.inf, -torch.inf, 4.0]]), torch.tensor([2]))
    assert losses[0] == 0 and (slopes == 0).all()
    assert run(torch.empty(0, 5), torch.zeros(0, dtype=torch.int64))[0].shape == (0,)


def test_confident_rows_keep_their_relative_accuracy() -> None:
    scores = torch.zeros(1, 2000)
    scores[0, 3] = 60.0
    _, slopes = run(scores, torch.tensor([3]))
    small = 1 / (torch.tensor(60.0).double().exp() + 1999)
    torch.testing.assert_close(slopes[0, 0].double(), small, rtol=1e-5, atol=0)
    torch.testing.assert_close(slopes[0, 3].double(), -1999 * small, rtol=1e-5, atol=0)


def test_two_reads_and_one_launch() -> None:
    counts()
    run(torch.randn(6, 2048), torch.zeros(6, dtype=torch.int64))
    done = counts()
    assert done["launches"] == 1
    assert done["loaded"] == 6 * (2 * 2048 * 4 + 512 * (4 + 8))


@pytest.mark.parametrize("family", ["gaussian", "gaussian-precision", None])
def test_the_loss_through_matmul(family: str | None) -> None:
    case = make_class(family, batch=(3,), width=4, classes=1025, bias=torch.randn(1025))
    name = family or "gaussian"
    found = bk.backend_for("linear_cross_entropy", case.a, family=name, classes=1025)
    assert found == "emulated-chunked"
    check_class(case)


def test_same_bits_in_every_order() -> None:
    scores, labels = torch.randn(3, 3000), torch.tensor([0, 5, 2999])
    results = []
    for order in (0, 1, 5):
        with emulation(order):
            results.append(run(scores, labels))
    for got in results[1:]:
        for one, other in zip(got, results[0], strict=True):
            assert_same_bits(one, other)
