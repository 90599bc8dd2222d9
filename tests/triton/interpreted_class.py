"""Class losses of the Triton kernels against the golden tables and the float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator

import oracle
import pytest
import torch
from class_cases import check_class, make_class
from golden_table import class_rows
from test_golden import check

import bll_kernels as bk
from bll_kernels.backends.triton.launch import class_table_parts, score_parts, softmax_tile
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")

NATURAL = ("bernoulli", "gaussian", "categorical")
every_family = pytest.mark.parametrize("family", [*oracle.FAMILIES, None])


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_golden_table(family: str) -> None:
    for row in class_rows(family)[::4]:
        group = row.a.shape[-1]
        value, da, dtable, dbias = op("triton", "class_loss_value_and_grad")(
            row.a.float().unsqueeze(0), row.table.float(), torch.tensor([row.label]),
            row.bias.float(), None, family, group, row.tau, row.normalize, 1.0, "none",
            True, True, True,
        )  # fmt: skip
        scores = oracle.class_scores(
            row.a, row.table, oracle.OracleFamily(family, tau=row.tau), row.bias, row.normalize
        )
        size = 1 + scores.abs().max()
        residual = row.dbias.abs().max()
        slope = (1 + row.a.abs().max() + row.table.abs().max()) * max(1.0, row.tau)
        check(value[0], row.value, torch.float32, size)
        check(dbias, row.dbias, torch.float32, size * residual)
        check(da[0], row.da, torch.float32, size * slope * residual, slope)
        check(dtable, row.dtable, torch.float32, size * slope * residual, slope)


@every_family
def test_dtypes(family: str | None) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check_class(make_class(family, dtype=dtype))
    case = make_class(family, dtype=torch.bfloat16)
    check_class(case.with_options(table=case.table.float() * 1.001, bias=torch.randn(4)))


@every_family
def test_options(family: str | None) -> None:
    bias, weight = torch.randn(4), torch.tensor([1.0, 0.0, 2.0, -0.5, 3.0])
    for reduction in ("none", "sum", "batchmean"):
        check_class(make_class(family, reduction=reduction, bias=bias, weight=weight))
    case = make_class(family)
    if family is not None:
        check_class(case.with_options(tilt=0.3, bias=bias))
    if family in NATURAL:
        check_class(case.with_options(normalize_message=True, bias=bias, tilt=0.7))


@every_family
@pytest.mark.parametrize(
    ("batch", "width", "classes"),
    [((), 8, 3), ((1,), 1, 1), ((9,), 68, 5), ((2, 3), 300, 2), ((0,), 8, 3), ((5,), 8, 18)],
)
def test_shapes(family: str | None, batch: tuple[int, ...], width: int, classes: int) -> None:
    """Tails in every direction, one of everything, several parts of a score, no rows."""
    check_class(make_class(family, batch=batch, width=width, classes=classes, scales=(1.0, 0.3)))


def test_more_classes_than_a_tile() -> None:
    check_class(make_class(None, batch=(2,), width=4, classes=4100, scales=(1.0, 3.0)))


def test_groups_longer_than_a_tile() -> None:
    case = make_class("categorical", batch=(1,), width=4200, classes=2)
    check_class(case.with_options(family=oracle.OracleFamily("categorical")))


def test_many_rows() -> None:
    """Several parts of the class-table gradient, the last ones short."""
    check_class(make_class("bernoulli", batch=(70,), width=4, classes=3))


@pytest.mark.parametrize("family", NATURAL)
@pytest.mark.parametrize("scales", [(10.0, 0.1), (20.0, 20.0), (0.0, 1.0)], ids=str)
def test_extreme_scores(family: str, scales: tuple[float, float]) -> None:
    for normalize in (False, True):
        check_class(make_class(family, scales=scales, width=40, normalize_message=normalize))


def test_confident_rows_keep_their_relative_accuracy() -> None:
    x = torch.tensor([[30.0, 0.0], [0.0, 25.0]])
    table, labels = torch.eye(2), torch.tensor([0, 1])
    _, (dx,) = bk.linear_cross_entropy_value_and_grad(x, table, labels, reduction="sum")
    small = torch.sigmoid(torch.tensor([-30.0, -25.0], dtype=torch.float64))
    want = torch.stack((torch.stack((-small[0], small[0])), torch.stack((small[1], -small[1]))))
    torch.testing.assert_close(dx.double(), want, rtol=1e-6, atol=0)


def test_one_class_costs_nothing() -> None:
    for family in oracle.FAMILIES:
        case = make_class(family, classes=1)
        value, (da, dtable) = case.call(True, case.operands(), wrt=("a", "table"))
        assert value == 0 and (da == 0).all() and (dtable == 0).all()


@every_family
def test_strided_and_float64(family: str | None) -> None:
    case = make_class(family)
    outer = torch.full(tuple(n + 3 for n in case.a.shape), torch.nan)
    view = outer[tuple(slice(1, 1 + n) for n in case.a.shape)]
    check_class(case.with_options(a=view.copy_(case.a)))
    double = make_class(family, dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"does not serve torch\.float64"):
        double.call(False, double.operands())


def test_labels_out_of_range_give_nan_in_their_rows_only() -> None:
    case = make_class("bernoulli", classes=3)
    labels = torch.tensor([0, -1, 2, 3, 2**40])
    value, residual = op("triton", "class_loss")(
        case.a, case.table, labels, None, None, "bernoulli", 1, 1.0, False, 1.0, "none"
    )
    valid = torch.tensor([True, False, True, False, False])
    assert torch.isfinite(value[valid]).all() and torch.isfinite(residual[valid]).all()
    assert torch.isnan(value[~valid]).all()


def test_parts_are_a_table() -> None:
    assert score_parts(4, 4, 64) == 1
    assert score_parts(4, 4, 10**5) == 16
    assert score_parts(10**6, 10, 512) == 1
    assert class_table_parts(10, 10, 512) == 1
    assert class_table_parts(10**4, 10, 512) == 43
    assert softmax_tile(10) == (64, 16, 4)
    assert softmax_tile(10**5) == (1, 4096, 8)
