"""Categorical groups of the CUDA kernels, emulated: every tier of the launch table."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import PairCase, check_pair, make_pair
from emulated import ORDERS, counts, emulation

from bll_kernels import posterior_kl_value_and_grad

pytest_plugins = ["emulated"]
pytestmark = pytest.mark.usefixtures("poisoned")
one_block_each = pytest.mark.usefixtures("cuda")
every_order = pytest.mark.parametrize("order", ORDERS)

every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
#: Two sizes of every tier, one of them no multiple of a vector.
SIZES = (2, 3, 8, 100, 256, 257, 1000, 1027, 4096, 4100, 8190, 8200)


def grouped(loss: str, batch: tuple[int, ...], group: int, groups: int = 1) -> PairCase:
    case = make_pair("categorical", loss, batch=batch, width=group * groups)
    return case.with_options(family=oracle.OracleFamily("categorical", group=group))


@one_block_each
@pytest.mark.parametrize("group", SIZES)
def test_every_tier(group: int) -> None:
    case = grouped("kl_full", (3,), group, 2 if group < 1000 else 1)
    check_pair(case.with_options(reduction="none"))
    check_pair(case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16(), reduction="sum"))


@one_block_each
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


@one_block_each
@every_loss
def test_direct_and_tilted_groups_in_one_warp(loss: str) -> None:
    case = grouped(loss, (16,), 6, 5)
    case.b.mul_(0.01)[::2] *= 1200
    check_pair(case.with_options(reduction="none"))


@one_block_each
def test_table_of_half_type() -> None:
    labels = torch.randint(3, (40,))
    for dtype in (torch.float32, torch.bfloat16):
        for group in (7, 64):
            case = grouped("evidence", (40,), group, 2)
            table = make_pair("categorical", batch=(3,), width=2 * group, seed=1).b.to(dtype)
            case = case.with_options(a=case.a.to(dtype), b=table, labels=labels)
            check_pair(case)
            check_pair(case.with_options(b=table.float(), weight=torch.rand(40), tilt=0.5))


@one_block_each
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


@every_order
@pytest.mark.parametrize(
    ("cluster", "kilobytes"), [(1, 0), (1, 24), (2, 64), (8, 24), (8, 227)], ids=str
)
def test_clusters(order: int, cluster: int, kilobytes: int) -> None:
    """Long groups: none, some or all of the latents kept, one block or several."""
    with emulation(order, 16, cluster, kilobytes << 10):
        for group in (8200, 9001):
            case = grouped("kl_full", (2,), group)
            check_pair(case.with_options(reduction="none"))
            check_pair(case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16()))
            check_pair(case.with_options(a=case.a.half()))
        labels = torch.tensor([1, 1, 0])
        check_pair(grouped("evidence", (3,), 8200).with_options(labels=labels))


@every_order
def test_blocks_of_a_cluster_read_a_group_once(order: int) -> None:
    """What 262,144 latents do on an H100: nothing is read twice but labels that do not exist."""
    width = 16_384
    for dtype, kilobytes, sweeps in ((torch.float32, 227, 1), (torch.bfloat16, 227, 1),
                                     (torch.float32, 0, 4)):  # fmt: skip
        case = make_pair("categorical", "kl_full", batch=(2,), width=width, dtype=dtype)
        with emulation(order, 16, 8, kilobytes << 10):
            counts()
            posterior_kl_value_and_grad(
                case.a, case.b, "categorical", stop_posterior=False, wrt=("a", "b")
            )
        assert counts()["loaded"] == sweeps * 2 * case.a.numel() * dtype.itemsize
