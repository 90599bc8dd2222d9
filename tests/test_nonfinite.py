"""Infinities and NaN in every operand: the same pattern as the reference in float64, which has
that of the definition wherever subtracting infinities does not leave the definition at a loss."""

from __future__ import annotations

import itertools
from functools import partial

import nonfinite
import oracle
import pytest
import torch
from oracle import OracleFamily
from torch import Tensor

import bll_kernels as bk
from bll_kernels.ops import op

NATURAL = ("bernoulli", "gaussian", "categorical")
OTHER_DTYPES = (torch.float64, torch.bfloat16, torch.float16)
#: What stands for infinity where the definition's limit is wanted.
LARGE = 1e4

each_family = pytest.mark.parametrize("family", oracle.FAMILIES)
each_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
forms = pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
scores = pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])


def skip_densities(family: str, normalize: bool) -> None:
    if normalize and family not in NATURAL:
        pytest.skip("messages of this family are densities already")


@scores
@each_family
def test_class_losses(backend: str, family: str, normalize: bool) -> None:
    skip_densities(family, normalize)
    names = nonfinite.CLASS_OPERANDS
    nonfinite.check_class(backend, family, normalize, torch.float32, nonfinite.odd_ones(names))
    for dtype in OTHER_DTYPES:
        nonfinite.check_class(backend, family, normalize, dtype, nonfinite.odd_ones(names, 1))


@scores
@each_family
def test_class_gradients_from_residuals(backend: str, family: str, normalize: bool) -> None:
    skip_densities(family, normalize)
    odds = nonfinite.odd_ones((*nonfinite.CLASS_OPERANDS, "grad"))
    nonfinite.check_class_backward(backend, family, normalize, odds)


@forms
@each_loss
@each_family
def test_pair_losses(backend: str, family: str, loss: str, gathered: bool) -> None:
    names = nonfinite.PAIR_OPERANDS
    odds = nonfinite.odd_ones(names)
    nonfinite.check_pair(backend, family, loss, gathered, torch.float32, odds)
    for dtype in OTHER_DTYPES:
        nonfinite.check_pair(backend, family, loss, gathered, dtype, nonfinite.odd_ones(names, 1))


@each_loss
@each_family
def test_upstream_gradients(backend: str, family: str, loss: str) -> None:
    nonfinite.check_backward(backend, family, loss, torch.float32)


@each_family
@pytest.mark.parametrize("mix", [0.0, 0.25, 1.0])
def test_next_input(backend: str, family: str, mix: float) -> None:
    nonfinite.check_next(backend, family, mix)


@pytest.mark.parametrize("kind", ["mean", "max", "std"])
def test_pooled(backend: str, kind: str) -> None:
    generator = torch.Generator().manual_seed(4)
    table = torch.randn(nonfinite.CLASSES, 8, generator=generator)
    check = partial(nonfinite.check_pooled, backend, kind)
    labels = nonfinite.LABELS
    for family in NATURAL:
        for twin in (bk.posterior_kl_value_and_grad, bk.evidence_loss_value_and_grad):
            check(twin, table, family=family, labels=labels)
        check(bk.class_evidence_loss_value_and_grad, table, labels, family=family,
              wrt=("a", "table"))  # fmt: skip
    check(bk.linear_cross_entropy_value_and_grad, table, labels, wrt=("x", "weight"))


@pytest.mark.native
@each_loss
@each_family
def test_numpy_door_on_every_instruction_set(family: str, loss: str) -> None:
    """Pair losses, and class losses beside the evidence, of `bll_kernels._core`."""
    core = pytest.importorskip("bll_kernels._core", reason="the compiled core is not built")
    rest = {"group": nonfinite.options(family)[1], "tau": nonfinite.TAU, "tilt": nonfinite.TILT}
    before = core.selected_isa()
    for odd, isa in itertools.product(nonfinite.odd_ones(("a", "b", "table"), 1), core.isas()):
        values = nonfinite.operands(family, nonfinite.ROWS, odd)
        a, b, table = (values[name] for name in ("a", "b", "table"))
        core.select_isa(isa)
        if loss == "evidence":
            labels = nonfinite.LABELS
            operands = (a.numpy(), table.numpy())
            value, residual = core.class_loss(*operands, labels.numpy(), family, **rest)
            got = (value, *core.class_loss_backward(residual, *operands, family, **rest)[:2])
            name, tensors = "class_loss_value_and_grad", (a, table, labels, None, None)
            tail = (False, nonfinite.TILT, "none", True, True, False)
        else:
            got = core.pair_loss(a.numpy(), b.numpy(), family, loss, **rest)
            name, tensors = "pair_loss_value_and_grad", (a, b, None, None)
            tail = (loss, nonfinite.TILT, "none", True, True)
        core.select_isa(before)
        exact = map(nonfinite.exact, tensors)
        want = op("reference", name)(*exact, *nonfinite.options(family), *tail)[:3]
        nonfinite.expect_pattern(tuple(map(torch.from_numpy, got)), want, (isa, odd))


@pytest.mark.parametrize("kind", ["mean", "max"])
def test_reference_of_pooling(kind: str) -> None:
    """Torch's own pooling, of odd pixels and of odd upstream gradients."""
    for x, value in nonfinite.maps(channels_last=False):
        grad = torch.randn(nonfinite.ROWS, 8, dtype=torch.float64)
        grad[2, 5] = value
        source = x.double().requires_grad_()
        want = oracle.grid_pool(source, kind, 2)
        (slope,) = torch.autograd.grad(want, source, grad)
        got = (op("reference", "grid_pool")(x.double(), kind, 2),
               op("reference", "grid_pool_backward")(grad, x.double(), kind, 2))  # fmt: skip
        nonfinite.expect_pattern(got, (want, slope), (kind, value))


def towards_infinity(values: dict[str, Tensor], size: float) -> dict[str, Tensor]:
    """The operands with numbers of a size in place of infinities."""
    return {name: torch.nan_to_num(x, torch.nan, size, -size) for name, x in values.items()}


def expect_definition(got: Tensor, want: Tensor, what: object) -> None:
    """The numbers and infinities of the definition; where it has NaN, anything."""
    for test in (torch.isposinf, torch.isneginf):
        assert torch.equal(test(got) & ~want.isnan(), test(want)), (what, got, want)
    known = want.isfinite()
    torch.testing.assert_close(got[known], want[known], rtol=1e-6, atol=1e-9)


def expect_limit(got: Tensor, near: Tensor, far: Tensor, what: object) -> None:
    """Where there is a number or an infinity: what large numbers, and larger ones, tend to."""
    known = near.isfinite() & far.isfinite()
    infinite = known & got.isinf()
    assert torch.equal((far - near)[infinite].sign(), got[infinite].sign()), (what, got, near, far)
    finite = known & got.isfinite()
    torch.testing.assert_close(got[finite], far[finite], rtol=1e-6, atol=1e-6)


def has_limit(family: str, odd: nonfinite.Odd) -> bool:
    """Whether float64 can follow the definition so far, and 0 times infinity does not occur."""
    return family != "gaussian-diagonal" and "weight" not in odd


def softmax_of_infinity(family: str, *logits: Tensor) -> bool:
    """Whether a categorical probability is inf / inf: NaN for its group, as in torch.softmax."""
    return family == "categorical" and any(bool(x.isposinf().any()) for x in logits)


@forms
@each_loss
@each_family
def test_reference_of_pair_losses(family: str, loss: str, gathered: bool) -> None:
    labels = nonfinite.LABELS if gathered else None
    group = nonfinite.GROUP if family == "categorical" else None
    member = OracleFamily(family, tau=nonfinite.TAU, group=group)

    def define(values: dict[str, Tensor]) -> list[Tensor]:
        a, b = (values[name].clone().requires_grad_() for name in ("a", "b"))
        value = oracle.pair_loss(a, b, member, loss, labels=labels, tilt=nonfinite.TILT,
                                 weight=values["weight"], reduction="sum")  # fmt: skip
        grads = torch.autograd.grad(value, (a, b), materialize_grads=True, allow_unused=True)
        return [value.detach(), *grads]

    for odd in nonfinite.odd_ones(nonfinite.PAIR_OPERANDS):
        rows = nonfinite.CLASSES if gathered else nonfinite.ROWS
        values = {k: x.double() for k, x in nonfinite.operands(family, rows, odd).items()}
        a, b, weight = (values[name] for name in nonfinite.PAIR_OPERANDS)
        rest = (*nonfinite.options(family), loss, nonfinite.TILT, "sum", True, True)
        got = op("reference", "pair_loss_value_and_grad")(a, b, labels, weight, *rest)
        limits = [define(towards_infinity(values, size)) for size in (LARGE, 2 * LARGE)]
        for index, (mine, want, *near) in enumerate(zip(got, define(values), *limits, strict=True)):
            if index == 0 or not softmax_of_infinity(family, a, b):
                expect_definition(mine, want, (odd, index))
                if has_limit(family, odd):
                    expect_limit(mine, *near, (odd, index))


@scores
@each_family
def test_reference_of_class_losses(family: str, normalize: bool) -> None:
    skip_densities(family, normalize)
    group = nonfinite.GROUP if family == "categorical" else None
    member = OracleFamily(family, tau=nonfinite.TAU, group=group)
    labels = nonfinite.LABELS

    def define(values: dict[str, Tensor]) -> list[Tensor]:
        a, table, bias = (values[k].clone().requires_grad_() for k in ("a", "table", "bias"))
        value = oracle.class_loss(
            a, table, labels, member, bias=bias, normalize_message=normalize,
            tilt=nonfinite.TILT, weight=values["weight"], reduction="sum",
        )  # fmt: skip
        return [value.detach(), *torch.autograd.grad(value, (a, table, bias))]

    for odd in nonfinite.odd_ones(nonfinite.CLASS_OPERANDS):
        found = nonfinite.operands(family, nonfinite.ROWS, odd)
        values = {name: x.double() for name, x in found.items()}
        a, table, bias, weight = (values[name] for name in nonfinite.CLASS_OPERANDS)
        rest = (*nonfinite.options(family), normalize, nonfinite.TILT, "sum", True, True, True)
        got = op("reference", "class_loss_value_and_grad")(a, table, labels, bias, weight, *rest)
        limits = [define(towards_infinity(values, size)) for size in (LARGE, 2 * LARGE)]
        for index, (mine, want, *near) in enumerate(zip(got, define(values), *limits, strict=True)):
            if index == 0 or not softmax_of_infinity(family, a, table):
                expect_definition(mine, want, (odd, index))
                if has_limit(family, odd):
                    expect_limit(mine, *near, (odd, index))
