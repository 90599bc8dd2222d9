"""Categorical groups of the CUDA kernels, emulated: every tier of the launch table."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import PairCase, check_pair, make_pair

from bll_kernels import posterior_kl_value_and_grad

pytest_plugins = ["emulated"]
pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
#: Two sizes of every tier, one of them no multiple of a vector.
SIZES = (2, 3, 8, 100, 256, 257, 1000, 1027, 4096, 4100, 8190, 8200)


def grouped(loss: str, batch: tuple[int, ...], group: int, groups: int = 1) -> PairCase:
    case = make_pair("categorical", loss, batch=batch, width=group * groups)
    return case.with_options(family=oracle.OracleFamily("categorical", group=group))


@pytest.mark.parametrize("group", SIZES)
def test_every_tier(group: int) -> None:
    case = grouped("kl_full", (3,), group, 2 if group < 1000 else 1)
    check_pair(case.with_options(reduction="none"))
    check_pair(case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16(), reduction="sum"))


@pytest.mark.parametrize("group", [5, 1000, 8200])
@pytest.mark.parametrize("boost", [0.0, 45.0])
@every_loss
def test_messages_of_both_forms(loss: str, boost: float, group: int) -> None:
    case = grouped(loss, (2,), group)
    case.b[:, -2] += boost
    check_pair(case)
    if loss == "kl_full":
        labels = torch.tensor([1, 1])
        check_pair(case.with_options(b=case.b + 0.1, labels=labels, reduction="none"))


@every_loss
def test_direct_and_tilted_groups_in_one_warp(loss: str) -> None:
    case = grouped(loss, (16,), 6, 5)
    case.b.mul_(0.01)[::2] *= 1200
    check_pair(case.with_options(reduction="none"))


def test_table_of_half_type() -> None:
    labels = torch.randint(3, (40,))
    for dtype in (torch.float32, torch.bfloat16):
        for group in (7, 64):
            case = grouped("evidence", (40,), group, 2)
            table = make_pair("categorical", batch=(3,), width=2 * group, seed=1).b.to(dtype)
            case = case.with_options(a=case.a.to(dtype), b=table, labels=labels)
            check_pair(case)
            check_pair(case.with_options(b=table.float(), weight=torch.rand(40), tilt=0.5))


def test_masked_latents() -> None:
    """a = -inf: probability zero, no gradient, no NaN."""
    case = grouped("kl", (4,), 37)
    case.a[:, ::5] = -torch.inf
    value, (da,) = posterior_kl_value_and_grad(case.a, case.b, "categorical", reduction="none")
    assert torch.isfinite(value).all() and torch.isfinite(da).all()
    assert (da[:, ::5] == 0).all()
    rest = torch.ones(37, dtype=torch.bool)
    rest[::5] = False
    want, (dwant,) = posterior_kl_value_and_grad(
        case.a[:, rest].contiguous(), case.b[:, rest].contiguous(), "categorical", reduction="none"
    )
    torch.testing.assert_close(value, want)
    torch.testing.assert_close(da[:, rest], dwant)
