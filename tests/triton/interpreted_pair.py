"""Pair losses of the Triton kernels against the golden tables and the float64 oracle."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import oracle
import pytest
import torch
from cases import (
    PairCase,
    accurate_da,
    check_pair,
    make_pair,
    package_family,
    pair_functions,
    pair_truth,
)
from golden_table import pair_batches
from test_golden import check, scales
from tolerance import (
    GRADIENT_ELEMENTWISE,
    assert_close,
    assert_same_bits,
    relative_elementwise,
    relative_l2,
)
from torch import Tensor

import bll_kernels as bk
from bll_kernels.backends.triton.launch import (
    LONGEST_TILE,
    element_tile,
    group_tile,
    section_tile,
    sections,
    table_tile,
)
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")

every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@every_family
def test_golden_table(family: str) -> None:
    for batch in pair_batches(family):
        options = (family, batch.group, batch.tau, batch.loss, 1.0, "none")
        value, da, db = op("triton", "pair_loss_value_and_grad")(
            batch.a.float(), batch.b.float(), None, None, *options, True, True
        )
        value_scale, gradient_scale = scales(batch)
        check(value, batch.value, torch.float32, value_scale)
        check(da, batch.da, torch.float32, gradient_scale)
        check(db, batch.db, torch.float32, gradient_scale)
        if batch.loss != "evidence":
            assert (value >= 0).all()


@pytest.mark.parametrize("loss", ["kl", "evidence"])
@every_family
def test_promised_gradient_accuracy(family: str, loss: str) -> None:
    for scale in (1.0, 0.05, 0.005):
        case = make_pair(family, loss, batch=(8,), width=128, scales=(3.0, scale), reduction="sum")
        if family == "gaussian-diagonal":  # a weak message is a wide one
            shift = torch.tensor([0.0, -2 * torch.tensor(scale).log().item()])[:, None]
            case = case.with_options(b=(case.b + shift).float())
        for dtype in (torch.float32, *HALVES):
            case = case.with_options(a=case.a.to(dtype), b=case.b.to(dtype))
            if dtype == torch.float16:  # keeps the gradients among the normal numbers
                case = case.with_options(weight=torch.full((8,), 64.0))
            _, twin, options = pair_functions(loss)
            arguments = {**options, **case.options()}
            _, (da,) = twin(case.a, case.b, package_family(case.family), **arguments)
            truth = accurate_da(case)
            error = relative_l2(da, truth.want)
            # The interpreter truncates to bfloat16 where a GPU rounds to nearest.
            assert error <= {torch.bfloat16: 5e-3, torch.float16: 3e-4}.get(dtype, 3e-7)
            if dtype == torch.float32:
                worst = relative_elementwise(da, truth.size, truth.want, truth.noise)
                assert worst <= GRADIENT_ELEMENTWISE[torch.float32]


@every_loss
@every_family
def test_dtypes(family: str, loss: str) -> None:
    for dtype in (torch.float32, *HALVES):
        check_pair(make_pair(family, loss, dtype=dtype, width=36))
    case = make_pair(family, loss, dtype=torch.bfloat16)
    check_pair(case.with_options(b=case.b.float() * 1.001))


@every_loss
@every_family
def test_options(family: str, loss: str) -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    for reduction in ("none", "sum", "batchmean"):
        case = make_pair(family, loss, reduction=reduction)
        check_pair(case.with_options(weight=weight, tilt=0.3))
    check_pair(make_pair(family, loss, batch=()))
    check_pair(make_pair(family, loss, batch=(0,)))
    check_pair(make_pair(family, loss, width=0))


@every_family
def test_class_table(family: str) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3])
    for dtype in (torch.float32, torch.bfloat16):
        case = make_pair(family, "kl_full", dtype=dtype, labels=labels, reduction="sum")
        table = make_pair(family, batch=(6,), dtype=dtype, seed=1).b
        check_pair(case.with_options(b=table))
        check_pair(case.with_options(b=table.float(), loss="evidence"))
        check_pair(case.with_options(b=table, weight=torch.rand(5), tilt=2.0, reduction="none"))
        check_pair(case.with_options(b=table, loss="kl"))


@pytest.mark.parametrize(
    ("family", "rows"),
    [*((family, 70) for family in oracle.FAMILIES), ("bernoulli", 270), ("gaussian-diagonal", 270)],
)
def test_many_rows_of_few_classes(family: str, rows: int) -> None:
    """Several sections per class, the last ones short or empty, a class without rows.

    More rows: more sections than are added up one by one, most of the rows in one class.
    """
    labels = torch.randint(3, (rows,)) * 2
    labels[70:] = 2
    case = make_pair(family, "evidence", batch=(rows,), width=260, labels=labels)
    table = make_pair(family, batch=(6,), width=260, seed=1).b
    _, twin, _ = pair_functions("evidence")
    _, grads = twin(case.a, table, package_family(case.family), labels=labels, wrt=("a", "b"))
    truth = pair_truth(case.with_options(b=table))
    for got, want, scale in zip(grads, truth.grads, truth.grad_scales, strict=True):
        assert_close(got, want, scale=scale, noise=truth.noise)


@pytest.mark.parametrize(
    ("batch", "width"), [((1,), 1), ((5,), 1), ((1,), 1500), ((3,), 1024), ((3,), 2052), ((40,), 3)]
)
@every_family
def test_shapes(family: str, batch: tuple[int, ...], width: int) -> None:
    """Tails, one row, one column, more columns than a tile, several row tiles."""
    case = make_pair(family, "kl_full", batch=batch, width=width, reduction="none")
    if family == "categorical":
        member = oracle.OracleFamily("categorical", group=width)
        case = case.with_options(family=member)
    check_pair(case)
    check_pair(case.with_options(reduction="batchmean"))


@every_loss
@pytest.mark.parametrize("boost", [0.0, 45.0])
def test_groups_longer_than_a_tile(loss: str, boost: float) -> None:
    """Sweeps over tiles, with messages of both forms; dense, from a table, and not aligned."""
    width = LONGEST_TILE + 100
    case = make_pair("categorical", loss, batch=(2,), width=width)
    case = case.with_options(family=oracle.OracleFamily("categorical"))
    case.b[:, -50] += boost
    check_pair(case)
    if loss == "kl_full":
        labels = torch.tensor([1, 1])
        check_pair(case.with_options(b=case.b + 0.1, labels=labels, reduction="none"))


def test_direct_and_tilted_groups_in_one_tile() -> None:
    """Messages beyond e^32 in some groups of a program, small ones in others."""
    case = make_pair("categorical", "kl_full", batch=(6,), width=300, scales=(3.0, 0.01))
    case.b[::2] *= 1200
    case = case.with_options(family=oracle.OracleFamily("categorical"), reduction="none")
    for loss in oracle.LOSSES:
        check_pair(case.with_options(loss=loss))


def inside_poison(x: Tensor) -> Tensor:
    """The same numbers as an interior view of a buffer of NaN."""
    outer = torch.full(tuple(size + 3 for size in x.shape), torch.nan, dtype=x.dtype)
    view = outer[tuple(slice(1, 1 + size) for size in x.shape)]
    return view.copy_(x)


@every_family
def test_strides_and_poisoned_padding(family: str) -> None:
    case = make_pair(family, "kl_full", batch=(3, 4), width=12)
    check_pair(case.with_options(a=inside_poison(case.a), b=inside_poison(case.b)))
    wide = case.a.movedim(0, 1).contiguous().movedim(0, 1)
    check_pair(case.with_options(a=wide))
    last = case.a.movedim(-1, 0).contiguous().movedim(0, -1)
    check_pair(case.with_options(b=last))
    check_pair(case.with_options(a=case.a[..., ::1].expand_as(case.a), b=case.b[0]))


@every_family
def test_same_bits_every_time(family: str) -> None:
    labels = torch.randint(4, (33,))
    case = make_pair(family, "evidence", batch=(33,), width=64)
    member, table = package_family(case.family), make_pair(family, batch=(4,), width=64).b
    results = [
        bk.evidence_loss_value_and_grad(case.a, table, member, labels=labels, wrt=("a", "b"))
        for _ in range(3)
    ]
    for value, grads in results[1:]:
        for got, want in zip((value, *grads), (results[0][0], *results[0][1]), strict=True):
            assert_same_bits(got, want)


@every_family
def test_labels_out_of_range_give_nan_in_their_rows_only(family: str) -> None:
    case = make_pair(family, "kl", reduction="none")
    table = make_pair(family, batch=(3,)).b
    group = case.family.group or 1
    wrong = (torch.tensor([0, -1, 2, 3, 2**40]), torch.tensor([0, 3, 1, -(2**40), 3]))
    for labels, loss in itertools.product(wrong, ("kl", "kl_full")):
        value, da, db = op("triton", "pair_loss_value_and_grad")(
            case.a, table, labels, None, family, group, 0.5, loss, 1.0, "none", True, True
        )
        valid = torch.tensor([True, False, True, False, False])
        assert torch.isfinite(value[valid]).all() and torch.isfinite(da[valid]).all()
        assert torch.isnan(value[~valid]).all()
        assert torch.isfinite(db).all()


@pytest.mark.parametrize(
    ("rows", "group", "groups"), [(1, 2, 1), (600, 2, 1), (9, 300, 2), (5, 4096, 1), (3, 4100, 1)]
)
def test_class_tables_of_groups(rows: int, group: int, groups: int) -> None:
    """One pass where a group fits a tile, by statistics where it does not."""
    width, labels = group * groups, torch.arange(rows) % 3
    case = make_pair("categorical", "kl_full", batch=(rows,), width=width, labels=labels)
    case = case.with_options(family=oracle.OracleFamily("categorical", group=group))
    table = make_pair("categorical", batch=(4,), width=width, seed=1).b
    check_pair(case.with_options(b=table, reduction="none"))
    half = case.with_options(a=case.a.bfloat16(), b=table.bfloat16(), loss="evidence")
    check_pair(half.with_options(weight=torch.rand(rows), tilt=0.5))


def test_float64_is_refused() -> None:
    case: PairCase = make_pair("gaussian", dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"does not serve torch\.float64"):
        bk.posterior_kl(case.a, case.b, "gaussian")
    with pytest.raises(TypeError, match=r"dtype: expected float32.*got torch.float64"):
        op("triton", "pair_loss")(case.a, case.b, None, None, "gaussian", 1, 1.0, "kl", 1.0, "sum")


def test_tiles_are_a_table() -> None:
    assert element_tile(1, False) == (1024, 1, 4)
    assert element_tile(3, False) == (256, 4, 4)
    assert element_tile(1000, False) == (1, 1024, 4)
    assert element_tile(10**6, False) == (1, 1024, 4)
    assert element_tile(10**6, True) == (1, 512, 4)
    assert table_tile(300, False) == (4, 256, 4)
    assert table_tile(300, True) == (2, 256, 4)
    assert table_tile(2, False) == (128, 2, 4)
    narrow, wide = table_tile(2, False), table_tile(300, False)
    assert sections(10, 6, 1, wide) == sections(0, 0, 1, wide) == 1
    assert sections(4096, 11, 16, wide) == 6  # as many as keep a GPU busy
    assert sections(10**6, 1, 1, wide) == 1024
    assert sections(10**6, 1001, 16, wide) == 15  # 64 rows of an equal share
    assert sections(10**7, 10, 16, wide) == 256
    assert sections(10**6, 1001, 1, narrow) == 2  # 512 rows there
    assert section_tile(16) == (1, 1024, 4) and section_tile(17) == (32, 32, 4)
    assert group_tile(2) == (512, 2, 4)
    assert group_tile(2, table=True) == (128, 2, 4)
    assert group_tile(1025) == group_tile(1025, table=True) == (1, 2048, 8)
    assert group_tile(LONGEST_TILE) == (1, LONGEST_TILE, 16)
    assert group_tile(LONGEST_TILE + 1) is None
