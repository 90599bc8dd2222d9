"""posterior_kl and evidence_loss against the oracle: every family, loss, dtype and option."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import (
    DTYPES,
    PairCase,
    accurate_da,
    check_pair,
    make_pair,
    package_family,
    pair_functions,
)
from tolerance import MESSAGE_SCALES, assert_gradient_accuracy

pytestmark = pytest.mark.usefixtures("poisoned")

every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)


@every_loss
@every_family
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes(backend: str, family: str, loss: str, dtype: torch.dtype) -> None:
    check_pair(make_pair(family, loss, dtype=dtype, width=36))


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_float32_message_beside_half(backend: str, family: str, dtype: torch.dtype) -> None:
    case = make_pair(family, "kl_full", dtype=dtype)
    check_pair(case.with_options(b=case.b.float() * 1.001))


@every_loss
@every_family
def test_options(backend: str, family: str, loss: str) -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    for reduction in ("none", "sum", "batchmean"):
        case = make_pair(family, loss, reduction=reduction)
        check_pair(case)
        check_pair(case.with_options(weight=weight))
        check_pair(case.with_options(tilt=0.3))


@every_loss
@every_family
def test_class_table(backend: str, family: str, loss: str) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3])
    for dtype in (torch.float32, torch.bfloat16):
        case = make_pair(family, loss, dtype=dtype, labels=labels, reduction="sum")
        table = make_pair(family, batch=(6,), dtype=dtype, seed=1).b
        check_pair(case.with_options(b=table))
        check_pair(case.with_options(b=table.float()))
        check_pair(case.with_options(b=table, weight=torch.rand(5), tilt=2.0, reduction="none"))


@every_family
@pytest.mark.parametrize("integer", [torch.int32, torch.int16, torch.uint8], ids=str)
def test_label_dtypes(backend: str, family: str, integer: torch.dtype) -> None:
    labels = torch.tensor([[0, 1], [1, 1]], dtype=integer)
    case = make_pair(family, "evidence", batch=(2, 2), labels=labels)
    check_pair(case.with_options(b=make_pair(family, batch=(2,)).b))


@every_family
def test_table_without_rows_of_a_class_gets_zero_gradient(backend: str, family: str) -> None:
    case = make_pair(family, "evidence", labels=torch.tensor([4, 4, 2, 2, 4]))
    table = make_pair(family, batch=(5,)).b
    _, twin, _ = pair_functions("evidence")
    _, (grad,) = twin(case.a, table, package_family(case.family), labels=case.labels, wrt=("b",))
    assert (grad[[0, 1, 3]] == 0).all()
    assert (grad[[2, 4]] != 0).any()


@every_family
def test_labels_equal_a_dense_gather(backend: str, family: str) -> None:
    labels = torch.tensor([2, 0, 1, 1, 0, 2, 2])
    table = make_pair(family, batch=(3,), seed=5).b
    case = make_pair(family, "kl_full", batch=(7,), labels=labels, reduction="none")
    _, twin, options = pair_functions("kl_full")
    arguments = {"wrt": ("a", "b"), "reduction": "none", **options}
    member = package_family(case.family)
    value, (da, db) = twin(case.a, table, member, labels=labels, **arguments)
    dense_value, (dense_da, dense_db) = twin(case.a, table[labels], member, **arguments)
    torch.testing.assert_close(value, dense_value, rtol=1e-6, atol=0)
    torch.testing.assert_close(da, dense_da, rtol=1e-6, atol=0)
    folded = torch.zeros_like(table).index_add(0, labels, dense_db)
    torch.testing.assert_close(db, folded, rtol=1e-5, atol=1e-6)


BROADCASTS = [
    ((4, 3), (3,)),
    ((4, 3), (1, 3)),
    ((4, 3), (4, 1)),
    ((2, 4, 3), (4, 3)),
    ((2, 4, 3), (2, 1, 3)),
    ((2, 4, 3), (4, 1)),
    ((3,), (4, 3)),
    ((1, 3), (4, 3)),
    ((2, 1, 3), (4, 3)),
    ((4, 1), (4, 3)),
]


@pytest.mark.parametrize("shapes", BROADCASTS, ids=str)
@pytest.mark.parametrize("loss", ["kl", "kl_full", "evidence"])
@pytest.mark.parametrize("family", ["bernoulli", "gaussian-precision"])
def test_broadcast(
    backend: str, family: str, loss: str, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    a, b = (torch.randn(shape) for shape in shapes)
    member = oracle.OracleFamily(family, tau=2.0)
    for reduction in ("none", "batchmean"):
        check_pair(PairCase(member, loss, a, b, reduction=reduction))


def test_broadcast_of_two_planes_and_groups(backend: str) -> None:
    diagonal = oracle.OracleFamily("gaussian-diagonal")
    check_pair(PairCase(diagonal, "kl_full", torch.randn(3, 4, 2, 5), torch.randn(2, 5)))
    check_pair(PairCase(diagonal, "evidence", torch.randn(3, 4, 2, 5), torch.randn(3, 1, 2, 5)))
    groups = oracle.OracleFamily("categorical", group=3)
    check_pair(PairCase(groups, "kl_full", torch.randn(3, 4, 6), torch.randn(6)))
    check_pair(PairCase(groups, "evidence", torch.randn(3, 4, 6), torch.randn(4, 6)))


@pytest.mark.parametrize("scale", MESSAGE_SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("loss", ["kl", "evidence"])
@every_family
def test_promised_gradient_accuracy(
    backend: str, family: str, loss: str, dtype: torch.dtype, scale: float
) -> None:
    """The promise of docs/method.md on a batch of random rows."""
    case = make_pair(
        family, loss, batch=(64,), width=512, dtype=dtype, scales=(3.0, scale), reduction="sum"
    )
    if dtype == torch.float16:  # keeps the gradients among the normal numbers
        case = case.with_options(weight=torch.full((64,), 64.0))
    if family == "gaussian-diagonal":  # a weak message is a wide one
        shift = torch.tensor([0.0, -2 * torch.tensor(scale).log().item()])[:, None]
        case = case.with_options(b=(case.b + shift).to(dtype))
    _, twin, options = pair_functions(loss)
    _, (da,) = twin(case.a, case.b, package_family(case.family), **{**options, **case.options()})
    truth = accurate_da(case)
    assert_gradient_accuracy(da, truth.want, dtype, truth.size, truth.noise)


@every_family
@pytest.mark.parametrize("scale", [0.005, 1e-4, 1e-6])
def test_no_negative_kl(backend: str, family: str, scale: float) -> None:
    for loss in ("kl", "reverse_kl"):
        case = make_pair(family, loss, batch=(4096,), width=4, scales=(4.0, scale))
        function, _, options = pair_functions(loss)
        value = function(case.a, case.b, package_family(case.family), reduction="none", **options)
        assert (value >= 0).all()
