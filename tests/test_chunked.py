"""Class losses of many classes through matmul in chunks, against the float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from class_cases import ClassCase, check_class, make_class

import bll_kernels as bk
from bll_kernels.backends import native, selection
from bll_kernels.functional import chunked
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

BACKENDS = ["reference", *(["native"] if native.FAILURE is None else [])]
every_family = pytest.mark.parametrize("family", ["gaussian", "gaussian-precision", None])


@pytest.fixture(params=BACKENDS)
def through_matmul(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Sends every linear class loss on the CPU through chunks of a few rows."""
    monkeypatch.setattr(selection, "MOST_FUSED_CLASSES", 0)
    monkeypatch.setitem(selection.CHUNKS, request.param, frozenset({"cpu"}))
    monkeypatch.setattr(chunked, "LEAST_ROWS", 4)
    monkeypatch.setattr(chunked, "CHUNK_SCORES", 1)
    with bk.use_backend(request.param):
        yield


def check(case: ClassCase) -> None:
    name = case.family.name if case.family else "gaussian"
    found = bk.backend_for("class_evidence_loss", case.a, family=name, classes=len(case.table))
    assert found.endswith("-chunked")
    check_class(case)


@every_family
@pytest.mark.usefixtures("through_matmul")
def test_against_the_oracle(family: str | None) -> None:
    bias, weight = torch.randn(7), torch.linspace(-1, 2, 9)
    for reduction in ("none", "sum", "batchmean"):
        check(make_class(family, batch=(9,), classes=7, reduction=reduction))
        check(
            make_class(family, batch=(9,), classes=7, reduction=reduction, bias=bias, weight=weight)
        )
    for batch, width, classes in (((), 8, 3), ((1,), 1, 1), ((2, 5), 30, 2), ((0,), 4, 3)):
        check(make_class(family, batch=batch, width=width, classes=classes))
    if family is not None:
        check(make_class(family, batch=(9,), tilt=0.3))
    if family == "gaussian":
        check(make_class(family, batch=(9,), tilt=0.3, normalize_message=True))


@every_family
@pytest.mark.usefixtures("through_matmul")
def test_half_types(family: str | None) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        case = make_class(family, batch=(9,), dtype=dtype, bias=torch.randn(4))
        check(case)
        check(case.with_options(table=case.table.float() * 1.001))


@pytest.mark.usefixtures("through_matmul")
def test_pooled_strided_and_confident() -> None:
    x = torch.randn(9, 3, 6, 6).to(memory_format=torch.channels_last)
    check_class(make_class("gaussian", batch=(9,), width=12, pool=("mean", 2)).with_options(a=x))
    case = make_class("gaussian", batch=(9,), width=8)
    check(case.with_options(a=torch.full((9, 12), torch.nan)[:, 2:10].copy_(case.a)))
    check(case.with_options(table=case.table.t().contiguous().t()))
    x, table = torch.tensor([[30.0, 0.0], [0.0, 25.0]]), torch.eye(2)
    _, (dx,) = bk.linear_cross_entropy_value_and_grad(
        x, table, torch.tensor([0, 1]), reduction="sum"
    )
    small = torch.sigmoid(torch.tensor([-30.0, -25.0], dtype=torch.float64))
    want = torch.stack((torch.stack((-small[0], small[0])), torch.stack((small[1], -small[1]))))
    torch.testing.assert_close(dx.double(), want, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("through_matmul")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    case = make_class("gaussian", batch=(9,), classes=50, dtype=dtype)
    table = case.table.float().requires_grad_()

    def run() -> tuple[torch.Tensor, ...]:
        a = case.a.detach().requires_grad_()
        value = bk.linear_cross_entropy(a, table, case.labels)
        return value, *torch.autograd.grad(value, (a, table))

    want = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    torch.testing.assert_close(found, want, rtol=0, atol=0)


@pytest.mark.usefixtures("through_matmul")
def test_second_derivatives_raise() -> None:
    case = make_class("gaussian", batch=(9,))
    a = case.a.requires_grad_()
    value = bk.class_evidence_loss(a, case.table, case.labels, "gaussian")
    (grad,) = torch.autograd.grad(value, a, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivative"):
        torch.autograd.grad(grad.sum(), a)


@pytest.mark.usefixtures("through_matmul")
def test_no_tensor_of_all_rows_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest tensor of scores that the row kernel sees is a chunk."""
    seen = []
    kernel = chunked.op

    def spy(backend: str, name: str):  # type: ignore[no-untyped-def]
        def run(scores: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
            seen.append(tuple(scores.shape))
            return kernel(backend, name)(scores, *rest)

        return run

    monkeypatch.setattr(chunked, "op", spy)
    case = make_class("gaussian", batch=(9,), classes=50)
    case.call(True, case.operands(), wrt=("a", "table"))
    assert seen == [(4, 50), (4, 50), (1, 50)]


def test_chunks_are_a_table() -> None:
    assert chunked.chunk_rows(4096, 32_000) == 2048
    assert chunked.chunk_rows(4096, 262_144) == 256
    assert chunked.chunk_rows(100, 2000) == 100
    assert chunked.chunk_rows(4096, 1 << 30) == 128
    assert chunked.chunk_rows(0, 2000) == 1


def test_what_goes_through_matmul_is_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    half = torch.bfloat16
    monkeypatch.setattr(native, "CUDA_FAILURE", None)
    choose = selection.chunked_backend
    assert choose("cuda", half, "gaussian", 1025) == "native"
    assert choose("cuda", half, "gaussian", 1024) is None
    assert choose("cuda", half, "bernoulli", 5000) is None
    assert choose("cuda", torch.float64, "gaussian", 5000) is None
    assert choose("cpu", torch.float32, "gaussian", 5000) is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_weight_zero_count_for_nothing(backend: str) -> None:
    scores = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 2.0, 3.0]])
    slopes = torch.empty_like(scores)
    weight = torch.tensor([0.0, 2.0])
    op(backend, "softmax_rows")(scores, torch.tensor([0, 1]), None, weight, slopes)
    assert (slopes[0] == 0).all() and torch.isfinite(slopes[1]).all() and slopes[1, 1] < 0
