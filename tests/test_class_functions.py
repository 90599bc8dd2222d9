"""class_evidence_loss and linear_cross_entropy against the oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, package_family
from class_cases import check_class, make_class

import bll_kernels as bk

pytestmark = pytest.mark.usefixtures("poisoned")

NATURAL = ("bernoulli", "gaussian", "categorical")
every_family = pytest.mark.parametrize("family", [*oracle.FAMILIES, None], ids=str)


@every_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(backend: str, family: str | None, dtype: torch.dtype) -> None:
    check_class(make_class(family, dtype=dtype, width=36, batch=(9,)))
    check_class(make_class(family, dtype=dtype, width=1, batch=(3,), classes=7))


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_table_beside_half(backend: str, family: str | None, dtype: torch.dtype) -> None:
    case = make_class(family, dtype=dtype)
    check_class(case.with_options(table=case.table.float() * 1.001, bias=torch.randn(4)))


@every_family
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_options(backend: str, family: str | None, reduction: str) -> None:
    case = make_class(family, reduction=reduction)
    bias, weight = torch.randn(4), torch.tensor([1.0, 0.0, 2.0, -0.5, 3.0])
    check_class(case)
    check_class(case.with_options(bias=bias, weight=weight))
    if family is not None:
        check_class(case.with_options(tilt=0.3, bias=bias))
        check_class(case.with_options(tilt=2.0))
    if family in NATURAL:
        check_class(case.with_options(normalize_message=True, bias=bias, tilt=0.7))


@every_family
@pytest.mark.parametrize("batch", [(), (1,), (2, 3), (2, 1, 4)], ids=str)
def test_leading_dimensions(backend: str, family: str | None, batch: tuple[int, ...]) -> None:
    for reduction in ("none", "batchmean"):
        check_class(make_class(family, batch=batch, reduction=reduction))


@every_family
@pytest.mark.parametrize("classes", [1, 2, 3, 5, 10, 33, 100])
def test_class_counts(backend: str, family: str | None, classes: int) -> None:
    check_class(make_class(family, classes=classes, width=20, batch=(6,)))


@every_family
@pytest.mark.parametrize("width", [1, 7, 8, 17, 64, 257, 600])
def test_widths(backend: str, family: str | None, width: int) -> None:
    check_class(make_class(family, width=width, scales=(1.0, 0.2)))


@pytest.mark.parametrize("family", NATURAL)
@pytest.mark.parametrize("scales", [(10.0, 0.1), (3.0, 5.0), (20.0, 20.0), (0.0, 1.0)], ids=str)
def test_extreme_scores(backend: str, family: str, scales: tuple[float, float]) -> None:
    for normalize in (False, True):
        check_class(make_class(family, scales=scales, width=40, normalize_message=normalize))


def test_one_class_costs_nothing(backend: str) -> None:
    for family in oracle.FAMILIES:
        case = make_class(family, classes=1)
        value, (da, dtable) = case.call(True, case.operands(), wrt=("a", "table"))
        assert value == 0 and (da == 0).all() and (dtable == 0).all()


def test_confident_rows_keep_their_relative_accuracy(backend: str) -> None:
    """p_y - 1 is minus the sum of the others, however small they are."""
    x = torch.tensor([[30.0, 0.0], [0.0, 25.0]])
    table, labels = torch.eye(2), torch.tensor([0, 1])
    _, (dx,) = bk.linear_cross_entropy_value_and_grad(x, table, labels, reduction="sum")
    small = torch.sigmoid(torch.tensor([-30.0, -25.0], dtype=torch.float64))
    want = torch.stack((torch.stack((-small[0], small[0])), torch.stack((small[1], -small[1]))))
    torch.testing.assert_close(dx.double(), want, rtol=1e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_gaussian_is_a_linear_classifier(backend: str, dtype: torch.dtype) -> None:
    """Normalised messages: cross-entropy of a linear map. Bare ones: plus |b_c|^2 / 2."""
    case = make_class("gaussian", width=30, classes=10, dtype=dtype)
    a, table = (x.clone().requires_grad_() for x in (case.a, case.table))
    for normalize in (True, False):
        ours = bk.class_evidence_loss(
            a, table, case.labels, "gaussian", normalize_message=normalize
        )
        prior = 0 if normalize else 0.5 * table.square().sum(-1)
        theirs = F.cross_entropy(F.linear(a, table) + prior, case.labels)
        torch.testing.assert_close(ours, theirs)
        ours, theirs = (torch.autograd.grad(value, (a, table)) for value in (ours, theirs))
        torch.testing.assert_close(ours, theirs)
    linear = bk.linear_cross_entropy(a, table, case.labels)
    torch.testing.assert_close(linear, F.cross_entropy(F.linear(a, table), case.labels))


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_classes_may_be_permuted(backend: str, family: str) -> None:
    case = make_class(family, classes=6, bias=torch.randn(6))
    order = torch.randperm(6)
    moved = case.with_options(
        table=case.table[order], bias=case.bias[order], labels=torch.argsort(order)[case.labels]
    )
    wrt = ("a", "table", "bias")
    value, (da, dtable, dbias) = case.call(True, case.operands(), wrt=wrt)
    other, (oda, odtable, odbias) = moved.call(True, moved.operands(), wrt=wrt)
    torch.testing.assert_close(other, value)
    torch.testing.assert_close(oda, da, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(odtable, dtable[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(odbias, dbias[order], atol=1e-5, rtol=1e-4)


def test_pooled_map_in_front(backend: str) -> None:
    for kind in ("mean", "max", "std"):
        for memory in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(3, 5, 7, 6).to(memory_format=memory)
            case = make_class("bernoulli", batch=(3,), width=20, pool=(kind, 2))
            check_class(case.with_options(a=x))
            case = make_class(None, batch=(3,), width=20, pool=(kind, 2))
            check_class(case.with_options(a=x.bfloat16(), table=case.table.bfloat16()))


def test_compact_gradient_is_the_cells(backend: str) -> None:
    x = torch.randn(3, 5, 8, 8)
    case = make_class("gaussian", batch=(3,), width=5 * 16, pool=("mean", 4))
    arguments = (case.table, case.labels, package_family(case.family))
    cells = F.adaptive_avg_pool2d(x, 4).flatten(1)
    _, (compact,) = bk.class_evidence_loss_value_and_grad(
        x, *arguments, pool=("mean", 4), compact_grad=True
    )
    _, (want,) = bk.class_evidence_loss_value_and_grad(cells, *arguments)
    torch.testing.assert_close(compact, want.reshape(3, 5, 4, 4))
    _, (full,) = bk.class_evidence_loss_value_and_grad(x, *arguments, pool=("mean", 4))
    spread = compact.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    torch.testing.assert_close(full, spread)
