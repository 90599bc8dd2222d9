"""The next block's input of the Triton kernels, interpreted, against the float64 oracle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_next_input as suite
import torch
from cases import make_pair
from oracle import FAMILIES, LOSSES, OracleFamily
from test_next_input import FLOAT8, MIXES, NEXT_DTYPES, assert_next, check_next

import bll_kernels as bk
from bll_kernels.backends.triton.launch import LONGEST_TILE
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "triton_backend")

every_family = pytest.mark.parametrize("family", FAMILIES)
every_mix = pytest.mark.parametrize("mix", MIXES, ids=str)


@pytest.fixture(scope="module")
def triton_backend() -> Iterator[None]:
    with bk.use_backend("triton"):
        yield


@every_mix
@every_family
def test_dtypes(family: str, mix: str | float) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        case = make_pair(family, "kl_full", dtype=dtype, width=36)
        for next_dtype in NEXT_DTYPES:
            check_next(case, mix, next_dtype)
        if dtype != torch.float32:
            check_next(case.with_options(b=case.b.float() * 1.001), mix)


@every_family
def test_losses_and_options(family: str) -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    for loss in LOSSES:
        case = make_pair(family, loss)
        check_next(case.with_options(reduction="none"), 0.25)
        check_next(case.with_options(weight=weight, tilt=0.3), "rho")
    check_next(make_pair(family, batch=()), "rho")
    check_next(make_pair(family, batch=(0,)), "rho")
    check_next(make_pair(family, width=0), "rho")


@every_mix
@every_family
def test_class_table(family: str, mix: str | float) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3])
    case = make_pair(family, "evidence", dtype=torch.bfloat16, labels=labels)
    table = make_pair(family, batch=(6,), dtype=torch.bfloat16, seed=1).b
    check_next(case.with_options(b=table), mix, FLOAT8)
    check_next(case.with_options(b=table.float(), tilt=2.0), mix)


@pytest.mark.parametrize(("batch", "width"), [((1,), 1), ((1,), 1500), ((3,), 2052), ((40,), 3)])
@every_family
def test_shapes(family: str, batch: tuple[int, ...], width: int) -> None:
    case = make_pair(family, "kl_full", batch=batch, width=width)
    if family == "categorical":
        case = case.with_options(family=OracleFamily("categorical", group=width))
    check_next(case, 0.25, torch.bfloat16)


@every_family
def test_strides(family: str) -> None:
    case = make_pair(family, "kl", batch=(3, 4), width=12)
    outside = (suite.inside_poison(case.a), suite.inside_poison(case.b))
    check_next(case.with_options(a=outside[0], b=outside[1]), 0.25)
    check_next(case.with_options(a=case.a.movedim(0, 1).contiguous().movedim(0, 1)), "rho")


@pytest.mark.parametrize("boost", [0.0, 45.0])
def test_groups_longer_than_a_tile(boost: float) -> None:
    width = LONGEST_TILE + 100
    case = make_pair("categorical", "kl", batch=(2,), width=width)
    case = case.with_options(family=OracleFamily("categorical"))
    case.b[:, -50] += boost
    for mix in MIXES:
        check_next(case, mix)
    options = (None, None, "categorical", width, 1.0, "kl", 1.0, "sum", False, False)
    _, da, db, mean = op("triton", "pair_loss_next")(case.a, case.b, *options, 1.0, torch.float16)
    assert not da.numel() and not db.numel()
    assert_next(mean, case, 1.0, torch.float16)


@pytest.mark.parametrize("scale", [0.01, 3.0, 60.0])
def test_messages_of_every_form(scale: float) -> None:
    case = make_pair("categorical", "kl", batch=(6,), width=300, scales=(3.0, scale))
    case = case.with_options(family=OracleFamily("categorical"))
    for mix in MIXES:
        check_next(case, mix)


def test_far_latents() -> None:
    generator = torch.Generator().manual_seed(3)
    for family in FAMILIES:
        member = OracleFamily(family, tau=0.5, group=4 if family == "categorical" else None)
        shape = (64, 2, 16) if member.planes == 2 else (64, 16)
        a, b = (suite.random_natural(shape, member, s, generator).float() for s in (30.0, 20.0))
        for mix in MIXES:
            check_next(suite.PairCase(member, "kl", a, b), mix)


def test_float8_rounds_to_nearest_even() -> None:
    suite.test_float8_rounds_to_nearest_even("triton")


@every_family
def test_messages_do_not_touch_the_mean_of_alpha(family: str) -> None:
    suite.test_messages_do_not_touch_the_mean_of_alpha("triton", family)
