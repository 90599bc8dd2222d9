"""Class losses of the emulated CUDA kernels against the golden tables and the float64 oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from class_cases import check_class, make_class
from emulated import counts, cuda, emulation  # noqa: F401
from golden_table import class_rows
from oracle import OracleFamily
from test_golden import check
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

SERVED = ("gaussian", "gaussian-precision", "bernoulli")
NATURAL = ("bernoulli", "gaussian")
every_family = pytest.mark.parametrize("family", [*SERVED, None])


@pytest.mark.parametrize("family", SERVED)
def test_golden_table(family: str) -> None:
    for row in class_rows(family)[::4]:
        group = row.a.shape[-1]
        value, da, dtable, dbias = op("emulated", "class_loss_value_and_grad")(
            row.a.float().unsqueeze(0), row.table.float(), torch.tensor([row.label]),
            row.bias.float(), None, family, group, row.tau, row.normalize, 1.0, "none",
            True, True, True,
        )  # fmt: skip
        scores = oracle.class_scores(
            row.a, row.table, OracleFamily(family, tau=row.tau), row.bias, row.normalize
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
        for batch, width in (((5,), 16), ((14,), 16), ((14,), 13)):
            check_class(make_class(family, dtype=dtype, batch=batch, width=width))
    case = make_class(family, dtype=torch.bfloat16, width=16)
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
    [
        *(((), 8, 3), ((1,), 1, 1), ((9,), 68, 5), ((2, 3), 300, 2), ((0,), 8, 3), ((5,), 8, 18)),
        *(((13,), 1600, 9), ((1,), 900, 5), ((12,), 260, 33)),
    ],
)
def test_shapes(family: str | None, batch: tuple[int, ...], width: int, classes: int) -> None:
    """Tails in every direction, one of everything, several tiles of latents, no rows."""
    check_class(make_class(family, batch=batch, width=width, classes=classes, scales=(1.0, 0.1)))


@every_family
def test_the_most_classes(family: str | None) -> None:
    check_class(make_class(family, batch=(2,), width=4, classes=1024, scales=(1.0, 3.0)))
    if family == "bernoulli":
        more = make_class(family, batch=(2,), width=4, classes=1025)
        with pytest.raises(RuntimeError, match="not served"):
            more.call(False, more.operands())


@every_family
def test_many_rows(family: str | None) -> None:
    """Several sections of the table gradient, the last one short, and parts of 64 rows."""
    check_class(make_class(family, batch=(150,), width=8, classes=3, bias=torch.randn(3)))


@pytest.mark.parametrize("family", NATURAL)
@pytest.mark.parametrize(
    "scales", [(10.0, 0.1), (20.0, 20.0), (0.0, 1.0), (1.0, 60.0), (60.0, 60.0)], ids=str
)
def test_extreme_scores(family: str, scales: tuple[float, float]) -> None:
    for normalize in (False, True):
        for width in (40, 37):
            check_class(make_class(family, scales=scales, width=width, normalize_message=normalize))


def test_confident_rows_keep_their_relative_accuracy() -> None:
    x = torch.tensor([[30.0, 0.0], [0.0, 25.0]])
    table, labels = torch.eye(2), torch.tensor([0, 1])
    _, (dx,) = bk.linear_cross_entropy_value_and_grad(x, table, labels, reduction="sum")
    small = torch.sigmoid(torch.tensor([-30.0, -25.0], dtype=torch.float64))
    want = torch.stack((torch.stack((-small[0], small[0])), torch.stack((small[1], -small[1]))))
    torch.testing.assert_close(dx.double(), want, rtol=1e-6, atol=0)


def test_one_class_costs_nothing() -> None:
    for family in SERVED:
        case = make_class(family, classes=1)
        value, (da, dtable) = case.call(True, case.operands(), wrt=("a", "table"))
        assert value == 0 and (da == 0).all() and (dtable == 0).all()


@every_family
def test_strided_and_misaligned(family: str | None) -> None:
    case = make_class(family, width=16)
    outer = torch.full((8, 20), torch.nan)
    for first in (1, 4):
        view = outer[1:6, first : first + 16]
        check_class(case.with_options(a=view.copy_(case.a)))
    table = torch.full((4, 21), torch.nan)[:, 2:18].copy_(case.table)
    check_class(case.with_options(table=table))
    check_class(case.with_options(a=case.a.t().contiguous().t()))


@pytest.mark.parametrize("family", SERVED)
def test_labels_out_of_range_give_nan_in_their_rows_only(family: str) -> None:
    case = make_class(family, classes=3)
    labels = torch.tensor([0, -1, 2, 3, 2**40])
    value, residual = op("emulated", "class_loss")(
        case.a, case.table, labels, None, None, family, 1, 1.0, False, 1.0, "none"
    )
    valid = torch.tensor([True, False, True, False, False])
    assert torch.isfinite(value[valid]).all() and torch.isfinite(residual[valid]).all()
    assert torch.isnan(value[~valid]).all() and torch.isnan(residual[~valid]).all()


@pytest.mark.parametrize("family", SERVED)
def test_nan_stays_in_its_row(family: str) -> None:
    case = make_class(family, width=16)
    case.a[1, 3] = torch.nan
    value, (da,) = case.with_options(reduction="none").call(True, case.operands())
    bad = torch.arange(5) == 1
    assert value[bad].isnan().all() and da[bad].isnan().any()
    assert torch.isfinite(value[~bad]).all() and torch.isfinite(da[~bad]).all()


def test_pooled_in_front() -> None:
    x = torch.randn(3, 4, 7, 6).to(memory_format=torch.channels_last)
    for family in (None, "bernoulli"):
        for kind in ("mean", "max", "std"):
            case = make_class(family, batch=(3,), width=16, pool=(kind, 2))
            check_class(case.with_options(a=x.bfloat16(), table=case.table.bfloat16()))


@pytest.mark.parametrize("family", SERVED)
def test_same_bits_in_every_order(family: str) -> None:
    case = make_class(family, batch=(150,), width=24, classes=11, bias=torch.randn(11))
    results = []
    for order in (0, 1, 2, 3):
        with emulation(order):
            value, grads = case.call(True, case.operands(), wrt=case.names)
            results.append((value, *grads))
    for got in results[1:]:
        for one, other in zip(got, results[0], strict=True):
            assert_same_bits(one, other)


@pytest.mark.parametrize("family", SERVED)
def test_launches_and_traffic(family: str) -> None:
    """Latents are read once for the scores, and once more where their gradient needs them."""
    case = make_class(family, batch=(24,), width=64, classes=10)
    wants = {(True, False, False): 2, (True, True, False): 3, (False, False, False): 2}
    loaded = {}
    for needs, launches in wants.items():
        counts()
        op("emulated", "class_loss_value_and_grad")(
            case.a, case.table, case.labels, None, None, family, 1, 0.5, False, 1.0, "batchmean",
            *needs,
        )  # fmt: skip
        done = counts()
        loaded[needs] = done["loaded"]
        # One section of rows: nothing of the table is left to be added up.
        assert done["launches"] == launches
    blocks = 24 // (2 if family == "bernoulli" else 4)
    latents, table = 4 * case.a.numel(), 4 * case.table.numel()
    labels = 24 * 32 * 8
    padded = (12 if family == "bernoulli" else 16) / 10  # a warp takes runs of 4 or of 8 classes
    assert loaded[False, False, False] == latents + labels + int(blocks * table * padded)
