"""The next block's input of the CUDA kernels, emulated, against the float64 oracle."""

from __future__ import annotations

import pytest
import test_next_input as suite
import torch
from cases import make_pair
from emulated import counts
from oracle import FAMILIES, LOSSES, OracleFamily
from test_next_input import FLOAT8, MIXES, NEXT_DTYPES, assert_next, call, check_next

from bll_kernels.ops import op

pytest_plugins = ["emulated"]
pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_mix = pytest.mark.parametrize("mix", MIXES, ids=str)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@every_mix
@every_family
def test_dtypes(family: str, mix: str | float) -> None:
    """Wide and single accesses, every pair of dtypes."""
    widths = (40, 36) if family == "categorical" else (40, 37)
    for dtype in DTYPES:
        for width in widths:
            case = make_pair(family, "kl_full", dtype=dtype, width=width)
            for next_dtype in NEXT_DTYPES:
                check_next(case, mix, next_dtype)
        if dtype != torch.float32:
            check_next(case.with_options(b=case.b.float() * 1.001), mix)


@every_family
def test_losses_and_options(family: str) -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    for loss in LOSSES:
        case = make_pair(family, loss, width=16)
        for reduction in ("none", "batchmean"):
            check_next(case.with_options(reduction=reduction), 0.25)
            check_next(case.with_options(reduction=reduction, weight=weight, tilt=0.3), "rho")
    check_next(make_pair(family, batch=()), "rho")
    check_next(make_pair(family, batch=(0,)), "rho")
    check_next(make_pair(family, width=0), "rho")


@every_mix
@every_family
def test_class_table(family: str, mix: str | float) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3])
    for dtype in (torch.float32, torch.bfloat16):
        case = make_pair(family, "evidence", dtype=dtype, labels=labels, width=16)
        table = make_pair(family, batch=(6,), dtype=dtype, seed=1, width=16).b
        check_next(case.with_options(b=table), mix, FLOAT8)
        check_next(case.with_options(b=table.float(), tilt=2.0), mix)


@pytest.mark.parametrize(
    ("batch", "width"),
    [((1,), 1), ((5,), 1), ((1,), 1500), ((3,), 1024), ((3,), 2052), ((40,), 3), ((2,), 5003)],
)
@every_family
def test_shapes(family: str, batch: tuple[int, ...], width: int) -> None:
    """Tails, one row, one column, more columns than a unit, several units per block."""
    case = make_pair(family, "kl_full", batch=batch, width=width, reduction="none")
    if family == "categorical":
        case = case.with_options(family=OracleFamily("categorical", group=width))
    check_next(case, 0.25, torch.bfloat16)
    check_next(case.with_options(reduction="batchmean"), 0.25)
    half = case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16(), reduction="sum")
    check_next(half, 0.25, torch.float32)
    check_next(half, 0.25, FLOAT8)


@pytest.mark.parametrize("group", [4, 300, 1100, 4100, 9000])
def test_every_tier_of_groups_and_form_of_messages(group: int) -> None:
    for scale in (0.01, 3.0, 60.0):
        case = make_pair("categorical", "kl_full", batch=(3,), width=group, scales=(3.0, scale))
        case = case.with_options(family=OracleFamily("categorical", group=group))
        for mix in MIXES:
            check_next(case, mix)


@every_family
def test_strides(family: str) -> None:
    case = make_pair(family, "kl", batch=(3, 4), width=12)
    outside = (suite.inside_poison(case.a), suite.inside_poison(case.b))
    check_next(case.with_options(a=outside[0], b=outside[1]), 0.25)
    check_next(case.with_options(a=case.a.movedim(0, 1).contiguous().movedim(0, 1)), "rho")


def test_far_latents() -> None:
    generator = torch.Generator().manual_seed(3)
    for family in FAMILIES:
        member = OracleFamily(family, tau=0.5, group=4 if family == "categorical" else None)
        shape = (64, 2, 16) if member.planes == 2 else (64, 16)
        a, b = (suite.random_natural(shape, member, s, generator).float() for s in (30.0, 20.0))
        for mix in MIXES:
            check_next(suite.PairCase(member, "kl", a, b), mix)


def test_float8_rounds_to_nearest_even() -> None:
    suite.test_float8_rounds_to_nearest_even("emulated")


@every_family
def test_messages_do_not_touch_the_mean_of_alpha(family: str) -> None:
    suite.test_messages_do_not_touch_the_mean_of_alpha("emulated", family)


@every_family
def test_wrong_labels_give_nan_in_their_rows_only(family: str) -> None:
    case = make_pair(family, "kl")
    table = make_pair(family, batch=(3,)).b
    options = (None, family, case.family.group or 1, 0.5, "kl", 1.0, "none", True, False)
    labels = torch.tensor([0, -1, 2, 3, 2**40])
    valid = torch.tensor([True, False, True, False, False])
    given = (case.a, table, labels, *options)
    mean = op("emulated", "pair_loss_next")(*given, 1.0, torch.float32)[3]
    assert torch.isfinite(mean[valid]).all()
    assert torch.isnan(mean[~valid]).all()
    alpha = op("emulated", "pair_loss_next")(*given, 0.0, torch.float32)[3]
    assert_next(alpha, case, 0.0, torch.float32)


@every_family
def test_latents_are_read_once(family: str) -> None:
    """The means come out of the same pass: as many bytes and launches as without them."""
    case = make_pair(family, "kl_full", batch=(16,), width=256)
    options = (None, None, family, case.family.group or 1, 0.5, "kl_full", 1.0, "sum", True, True)
    counts()
    op("emulated", "pair_loss_value_and_grad")(case.a, case.b, *options)
    plain = counts()
    op("emulated", "pair_loss_next")(case.a, case.b, *options, 0.25, torch.bfloat16)
    found = counts()
    assert plain["loaded"] > 0
    assert (found["loaded"], found["launches"]) == (plain["loaded"], plain["launches"])


def test_float64_is_refused() -> None:
    case = make_pair("gaussian", "kl")
    options = (None, None, "gaussian", 1, 1.0, "kl", 1.0, "sum", True, False)
    with pytest.raises(RuntimeError, match="next_dtype: expected float64 beside a float64 a only"):
        op("emulated", "pair_loss_next")(case.a, case.b, *options, 0.5, torch.float64)
    with pytest.raises(RuntimeError, match=r"mix: expected a number in \[0, 1\], got 2"):
        op("emulated", "pair_loss_next")(case.a, case.b, *options, 2.0, torch.float32)
    assert call(case, 0.25)[2].dtype == torch.float32
