"""Gram loss and class means of the torch-free kernels, on every instruction set."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gram_cases import cosine_gram

core = pytest.importorskip("bll_kernels._core", reason="the compiled core is not built")
pytestmark = pytest.mark.native


@pytest.fixture(params=core.isas())
def isa(request: pytest.FixtureRequest):
    """Every instruction set this processor runs."""
    before = core.selected_isa()
    core.select_isa(request.param)
    yield request.param
    core.select_isa(before)


def truth(x, gram, center, factor):
    leaf = torch.from_numpy(x).double().requires_grad_()
    values = (cosine_gram(leaf, center) - gram).square().mean(1)
    (grad,) = torch.autograd.grad((values * factor).sum(), leaf)
    return values.detach().numpy(), grad.numpy()


@pytest.mark.parametrize("shape", [(1, 5), (7, 1), (33, 70), (65, 129), (130, 600)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("center", [True, False])
def test_gram_against_autograd(isa, shape, dtype, center):
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=shape).astype(dtype), rng.integers(4, size=shape[0])
    weight, grad = (rng.random(shape[0]).astype(dtype) for _ in range(2))
    options = {"weight": weight, "grad": grad, "center": center}
    factor = torch.from_numpy(weight * grad).double()
    close = {"rtol": 3e-6 if dtype == np.float32 else 1e-12}
    size = np.abs(x).max() * 1e-6 if dtype == np.float32 else 1e-13

    ids = torch.from_numpy(labels)
    gram = torch.where(ids[:, None] == ids, 1.0, -0.25).double()
    want, want_grad = truth(x, gram, center, factor)
    value, grad_x = core.gram_loss(x, labels=labels, other=-0.25, **options)
    np.testing.assert_allclose(value, want * weight, atol=1e-6 * close["rtol"], **close)
    np.testing.assert_allclose(grad_x, want_grad, atol=size, **close)
    total, _ = core.gram_loss(
        x, labels=labels, other=-0.25, weight=weight, center=center, reduction="sum",
        need_grad=False,
    )  # fmt: skip
    np.testing.assert_allclose(total, (want * weight).sum(), atol=1e-12, **close)

    vectors = rng.normal(size=(shape[0], 9)).astype(dtype)
    gram = cosine_gram(torch.from_numpy(vectors).double(), center)
    want, want_grad = truth(x, gram, center, factor)
    value, grad_x = core.gram_loss(x, vectors=vectors, **options)
    np.testing.assert_allclose(value, want * weight, atol=1e-6 * close["rtol"], **close)
    np.testing.assert_allclose(grad_x, want_grad, atol=size, **close)


def test_bits_do_not_depend_on_the_split(isa):
    rng = np.random.default_rng(1)
    x, labels = rng.normal(size=(200, 130)).astype(np.float32), rng.integers(9, size=200)
    results = []
    for count in (1, 2, 7):
        core.set_pieces(count)
        value, grad = core.gram_loss(x, labels=labels, reduction="batchmean")
        alone, _ = core.gram_loss(x, labels=labels, reduction="batchmean", need_grad=False)
        results.append((value, grad, alone, *core.class_means(x, labels, 10)))
    core.set_pieces(1)
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_inputs_are_those_of_float32(isa, dtype):
    half = torch.randn(40, 70).to(getattr(torch, dtype))
    wide = half.float().numpy()
    narrow = half.view(torch.uint16).numpy() if dtype == "bfloat16" else half.numpy()
    labels = np.arange(40) % 3
    value, grad = core.gram_loss(narrow, labels=labels)
    want, want_grad = core.gram_loss(wide, labels=labels)
    np.testing.assert_array_equal(value, want)
    rounded = torch.from_numpy(want_grad).to(half.dtype)
    assert torch.equal(torch.from_numpy(grad).view(torch.uint16), rounded.view(torch.uint16))
    for got, wanted in zip(
        core.class_means(narrow, labels, 4), core.class_means(wide, labels, 4), strict=True
    ):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("rows", [0, 1, 15, 16, 17, 40])
def test_means_of_one_class(isa, rows):
    """Every way a class's rows are added up: none, one, one run, several."""
    x = np.random.default_rng(2).normal(size=(rows, 1030)).astype(np.float32)
    means, counts = core.class_means(x, np.full(rows, 1), 3)
    assert counts.tolist() == [0, rows, 0] and not means[[0, 2]].any()
    want = x.astype(np.float64).sum(0) / max(rows, 1)
    np.testing.assert_allclose(means[1], want, atol=1e-6)


BAD = {
    "x": (ValueError, lambda x: core.gram_loss(x[0])),
    "labels": (ValueError, lambda x: core.gram_loss(x, labels=np.arange(3))),
    "vectors": (ValueError, lambda x: core.gram_loss(x, vectors=x[:1])),
    "weight": (ValueError, lambda x: core.gram_loss(x, weight=np.ones(3, np.float32))),
    "grad": (TypeError, lambda x: core.gram_loss(x, grad=np.ones(2))),
    "reduction": (ValueError, lambda x: core.gram_loss(x, reduction="mean")),
    "classes": (ValueError, lambda x: core.class_means(x, np.arange(2), 0)),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments_are_named(argument):
    error, call = BAD[argument]
    with pytest.raises(error, match=f"^{argument}: "):
        call(np.ones((2, 3), np.float32))


def test_labels_of_means_are_checked():
    with pytest.raises(ValueError, match=r"^labels: "):
        core.class_means(np.ones((2, 3), np.float32), np.array([0, 2]), 2)
