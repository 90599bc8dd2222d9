"""Pair losses of the CUDA kernels, emulated, against the golden tables and the float64 oracle."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import accurate_da, check_pair, make_pair, package_family, pair_functions, pair_truth
from emulated import emulation
from golden_table import pair_batches
from test_golden import check, scales
from tolerance import (
    GRADIENT_ELEMENTWISE,
    assert_close,
    assert_gradient_accuracy,
    assert_same_bits,
    relative_elementwise,
)
from torch import Tensor

import bll_kernels as bk
from bll_kernels.ops import op

pytest_plugins = ["emulated"]
pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
HALVES = (torch.bfloat16, torch.float16)


@every_family
def test_golden_table(family: str) -> None:
    for batch in pair_batches(family):
        options = (family, batch.group, batch.tau, batch.loss, 1.0, "none")
        value, da, db = op("emulated", "pair_loss_value_and_grad")(
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
            assert_gradient_accuracy(da, truth.want, dtype, truth.size, truth.noise)
            if dtype == torch.float32:
                worst = relative_elementwise(da, truth.size, truth.want, truth.noise)
                assert worst <= GRADIENT_ELEMENTWISE[torch.float32]


@every_loss
@every_family
def test_dtypes(family: str, loss: str) -> None:
    widths = (40, 36) if family == "categorical" else (40, 37)
    for dtype in (torch.float32, *HALVES):
        for width in widths:
            check_pair(make_pair(family, loss, dtype=dtype, width=width))
    for width in widths:
        case = make_pair(family, loss, dtype=torch.bfloat16, width=width)
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
        case = make_pair(family, "kl_full", dtype=dtype, labels=labels, reduction="sum", width=16)
        table = make_pair(family, batch=(6,), dtype=dtype, seed=1, width=16).b
        check_pair(case.with_options(b=table))
        check_pair(case.with_options(b=table.float(), loss="evidence"))
        check_pair(case.with_options(b=table, weight=torch.rand(5), tilt=2.0, reduction="none"))
        check_pair(case.with_options(b=table, loss="kl"))


@pytest.mark.parametrize(("rows", "classes", "width"), [(70, 3, 260), (600, 5, 12), (9, 40, 36)])
@every_family
def test_rows_of_classes(family: str, rows: int, classes: int, width: int) -> None:
    """Sections of a class, chunks of the sort, classes without rows, more than a tile's columns."""
    labels = torch.randint(classes, (rows,)) * 2
    case = make_pair(family, "evidence", batch=(rows,), width=width, labels=labels)
    table = make_pair(family, batch=(2 * classes,), width=width, seed=1).b
    _, twin, _ = pair_functions("evidence")
    _, grads = twin(case.a, table, package_family(case.family), labels=labels, wrt=("a", "b"))
    truth = pair_truth(case.with_options(b=table))
    for got, want, scale in zip(grads, truth.grads, truth.grad_scales, strict=True):
        assert_close(got, want, scale=scale, noise=truth.noise)


@pytest.mark.parametrize(
    ("batch", "width"),
    [((1,), 1), ((5,), 1), ((1,), 1500), ((3,), 1024), ((3,), 2052), ((40,), 3), ((2,), 5003)],
)
@every_family
def test_shapes(family: str, batch: tuple[int, ...], width: int) -> None:
    """Tails, one row, one column, more columns than a unit, several units per block."""
    case = make_pair(family, "kl_full", batch=batch, width=width, reduction="none")
    if family == "categorical":
        case = case.with_options(family=oracle.OracleFamily("categorical", group=width))
    check_pair(case)
    check_pair(case.with_options(reduction="batchmean"))
    check_pair(case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16(), reduction="sum"))


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
    padded = torch.full((*case.a.shape[:-1], 20), torch.nan)
    padded[..., :12] = case.a
    check_pair(case.with_options(a=padded[..., :12], reduction="none"))


@every_family
def test_same_bits_in_every_order(family: str) -> None:
    labels = torch.randint(4, (33,))
    case = make_pair(family, "evidence", batch=(33,), width=64)
    member, table = package_family(case.family), make_pair(family, batch=(4,), width=64).b
    results = []
    for order in (0, 1, 2, 3):
        with emulation(order):
            results.append(
                bk.evidence_loss_value_and_grad(
                    case.a, table, member, labels=labels, wrt=("a", "b")
                )
            )
    for value, grads in results[1:]:
        for got, want in zip((value, *grads), (results[0][0], *results[0][1]), strict=True):
            assert_same_bits(got, want)


@every_family
def test_labels_out_of_range_give_nan_in_their_rows_only(family: str) -> None:
    case = make_pair(family, "kl_full", reduction="none")
    table = make_pair(family, batch=(3,)).b
    group = case.family.group or 1
    for labels in (torch.tensor([0, -1, 2, 3, 2**40]), torch.tensor([0, 3, 1, -(2**40), 3])):
        value, da, db = op("emulated", "pair_loss_value_and_grad")(
            case.a, table, labels, None, family, group, 0.5, "kl_full", 1.0, "none", True, True
        )
        valid = torch.tensor([True, False, True, False, False])
        assert torch.isfinite(value[valid]).all() and torch.isfinite(da[valid]).all()
        assert torch.isnan(value[~valid]).all()
        assert torch.isfinite(db).all()


def test_float64_is_refused() -> None:
    case = make_pair("gaussian", dtype=torch.float64)
    with pytest.raises(RuntimeError, match=r"a: expected float32.*got float64"):
        op("emulated", "pair_loss")(
            case.a, case.b, None, None, "gaussian", 1, 1.0, "kl", 1.0, "sum"
        )
