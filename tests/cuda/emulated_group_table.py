"""Class tables of categorical groups in the CUDA kernels, emulated: value, gradients of rows and
table from one read."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import PairCase, check_pair, make_pair
from emulated import ORDERS, counts, emulation
from tolerance import assert_same_bits
from torch import Tensor

from bll_kernels.ops import op

pytest_plugins = ["emulated"]
pytestmark = pytest.mark.usefixtures("poisoned")
every_order = pytest.mark.parametrize("order", ORDERS)
LOSSES = [loss for loss in oracle.LOSSES if loss not in ("kl", "reverse_kl")]
every_loss = pytest.mark.parametrize("loss", LOSSES)


def by_label(loss: str, rows: int, group: int, groups: int = 1, classes: int = 5) -> PairCase:
    """Rows of classes 0 to `classes` - 2; the last class has none."""
    case = make_pair("categorical", loss, batch=(rows,), width=group * groups)
    table = make_pair("categorical", batch=(classes,), width=group * groups, seed=1).b
    labels = torch.randint(classes - 1, (rows,), generator=torch.Generator().manual_seed(rows))
    family = oracle.OracleFamily("categorical", group=group)
    return case.with_options(b=table, labels=labels, family=family)


@every_order
@pytest.mark.parametrize(
    ("rows", "group", "groups"),
    [
        # Teams of 1 to 32 lanes, whole rows and runs of their groups; several rows at a time.
        *((1, 2, 1), (70, 3, 5), (40, 8, 300), (20, 40, 7), (300, 10, 1), (9, 256, 2)),
        # A block to a group: every tier, whole vectors and not; then the blocks of a cluster.
        *((12, 257, 1), (12, 1024, 2), (6, 2001, 1), (6, 4096, 1), (5, 4100, 1), (3, 8201, 2)),
    ],
)
def test_every_tier(order: int, rows: int, group: int, groups: int) -> None:
    case = by_label("kl_full", rows, group, groups)
    with emulation(order):
        check_pair(case.with_options(reduction="none"))
        half = case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16())
        check_pair(half.with_options(weight=torch.rand(rows), tilt=0.5))
        check_pair(half.with_options(b=case.b, reduction="sum"))


@every_loss
@pytest.mark.parametrize("group", [5, 1000, 4100])
@pytest.mark.parametrize("boost", [0.0, 45.0])
def test_messages_of_every_form(loss: str, boost: float, group: int) -> None:
    for scale in (0.01, 1.0):
        case = by_label(loss, 20, group)
        case.b.mul_(scale)[1::2, -2] += boost
        with emulation(0):
            check_pair(case)


@every_order
@pytest.mark.parametrize(
    ("cluster", "kilobytes"), [(1, 0), (1, 24), (2, 64), (8, 24), (8, 227)], ids=str
)
def test_clusters(order: int, cluster: int, kilobytes: int) -> None:
    """None, some or all of the latents and sums kept, one block to a group or several."""
    case = by_label("kl_full", 7, 8200, classes=3)
    table = make_pair("categorical", batch=(3,), width=9001, seed=1).b
    with emulation(order, 16, cluster, kilobytes << 10):
        check_pair(case.with_options(reduction="none"))
        check_pair(case.with_options(a=case.a.bfloat16(), b=case.b.bfloat16()))
        check_pair(case.with_options(a=case.a.half()))
        odd = make_pair("categorical", "evidence", batch=(7,), width=9001)
        family = oracle.OracleFamily("categorical", group=9001)
        check_pair(odd.with_options(b=table, labels=case.labels, family=family))


def run(case: PairCase, labels: Tensor, **flags: bool) -> tuple[Tensor, ...]:
    """Value, gradients of rows and table."""
    wanted = [flags.get(name, True) for name in ("rows", "table")]
    return tuple(
        op("emulated", "pair_loss_value_and_grad")(
            case.a, case.b, labels, None, "categorical", case.family.group, 1.0, case.loss, 1.0,
            "none", *wanted,
        )
    )  # fmt: skip


@pytest.mark.parametrize("group", [6, 1000, 3000, 8200])
def test_the_same_bits_in_every_order(group: int) -> None:
    case = by_label("evidence", 70 if group < 100 else 9, group)
    results = []
    for order in (0, 1, 2, 3):
        with emulation(order):
            results.append(run(case, case.labels))
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert_same_bits(got, want)


@pytest.mark.parametrize("kilobytes", [0, 227])
@pytest.mark.parametrize("group", [6, 1000, 8200])
def test_wrong_labels_give_nan_in_their_rows_only(group: int, kilobytes: int) -> None:
    case = by_label("kl_full", 5, group, classes=3)
    for labels in (torch.tensor([0, -1, 2, 3, 2**40]), torch.tensor([0, 3, 1, -(2**40), 3])):
        with emulation(0, shared=kilobytes << 10):
            value, da, db = run(case, labels)
        valid = torch.tensor([True, False, True, False, False])
        assert torch.isfinite(value[valid]).all() and torch.isfinite(da[valid]).all()
        assert torch.isnan(value[~valid]).all() and torch.isnan(da[~valid]).all()
        rest = case.with_options(a=case.a[valid].contiguous())
        with emulation(0, shared=kilobytes << 10):
            want = run(rest, labels[valid])[2]
        torch.testing.assert_close(db, want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("group", [6, 3000, 8200])
def test_gradients_do_not_depend_on_what_else_is_wanted(group: int) -> None:
    case = by_label("kl_full", 9, group)
    with emulation(0):
        _, da, db = run(case, case.labels)
        assert_same_bits(run(case, case.labels, rows=False)[2], db)
        torch.testing.assert_close(run(case, case.labels, table=False)[1], da)


@pytest.mark.parametrize("group", [16, 1000, 4000, 8200])
def test_no_gradient_of_a_row_reaches_memory(group: int) -> None:
    """Beside the gradient of the rows, what is stored grows with the classes, not the rows."""
    stored = []
    for rows in (256, 512):
        case = by_label("kl_full", rows, group, classes=2)
        with emulation(0):
            counts()
            run(case, case.labels)
        stored.append(counts()["stored"])
    # Places in the sort and counts of labels, a few numbers per row, and the gradient of a.
    assert stored[1] - stored[0] <= 256 * (4 * group + 32)
