"""Infinities and NaN in the CUDA kernels: the pattern of the float64 reference.

Weights of pair losses are not among them: a kernel weighs parts of a row, whose terms then are
infinite with both signs where the row's sum is not.
"""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import nonfinite
import oracle
import pytest
import torch
from class_cases import ClassCase
from emulated import ORDERS, PROCESSORS, counts, emulation
from emulated_pooled import fused
from emulated_pooled import make as make_pooled
from test_pool import MEMORY

import bll_kernels as bk
from bll_kernels.ops import op

pytest_plugins = ["emulated"]
FLOAT = torch.float32
HALVES = (torch.bfloat16, torch.float16)
CLASS_CASES = [
    ("gaussian", False),
    ("gaussian", True),
    ("gaussian-precision", False),
    ("bernoulli", False),
    ("bernoulli", True),
]

class_cases = pytest.mark.parametrize(
    ("family", "normalize"), CLASS_CASES, ids=lambda x: x if isinstance(x, str) else str(x)
)


@pytest.fixture(autouse=True)
def _device() -> object:
    with emulation(0):
        yield


@pytest.mark.parametrize("processors", [PROCESSORS, 1], ids=["row", "rows"])
@class_cases
def test_class_losses(family: str, normalize: bool, processors: int) -> None:
    """A row per block, and several."""
    names = nonfinite.CLASS_OPERANDS
    with emulation(0, processors):
        odds = nonfinite.odd_ones(names)
        nonfinite.check_class("emulated", family, normalize, FLOAT, odds)
        for dtype in HALVES:
            odds = nonfinite.odd_ones(names, 1)
            nonfinite.check_class("emulated", family, normalize, dtype, odds)


@class_cases
def test_class_losses_one_latent_at_a_time(
    monkeypatch: pytest.MonkeyPatch, family: str, normalize: bool
) -> None:
    monkeypatch.setattr(nonfinite, "WIDTH", 7)
    odds = nonfinite.odd_ones(nonfinite.CLASS_OPERANDS)
    nonfinite.check_class("emulated", family, normalize, FLOAT, odds)


@class_cases
def test_class_losses_in_sections(
    monkeypatch: pytest.MonkeyPatch, family: str, normalize: bool
) -> None:
    """Several sections of rows in the table's gradient."""
    monkeypatch.setattr(nonfinite, "ROWS", 150)
    monkeypatch.setattr(nonfinite, "LABELS", torch.arange(150) % nonfinite.CLASSES)
    odds = nonfinite.odd_ones(nonfinite.CLASS_OPERANDS, 1)
    counts()
    nonfinite.check_class("emulated", family, normalize, FLOAT, odds)
    assert counts()["launches"] == 3 * len(odds)


@class_cases
def test_class_gradients_from_residuals(family: str, normalize: bool) -> None:
    odds = nonfinite.odd_ones((*nonfinite.CLASS_OPERANDS, "grad"))
    nonfinite.check_class_backward("emulated", family, normalize, odds)


def test_numbers_beside_infinities() -> None:
    """A density with an infinite mean explains nothing; the other classes share the probability."""
    for odd in nonfinite.odd_ones(("table", "bias", "weight")):
        values = nonfinite.operands("gaussian-precision", nonfinite.ROWS, odd)
        a, table, bias, weight = (values[name] for name in nonfinite.CLASS_OPERANDS)
        tensors = (a, table, nonfinite.LABELS, bias, weight)
        rest = ("gaussian-precision", 1, nonfinite.TAU, False, 1.0, "none", True, True, True)
        found = op("emulated", "class_loss_value_and_grad")(*tensors, *rest)
        truth = op("reference", "class_loss_value_and_grad")(*map(nonfinite.exact, tensors), *rest)
        for got, want in zip(found, truth, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-6, equal_nan=True)


@pytest.mark.parametrize("order", ORDERS)
@class_cases
def test_class_losses_in_every_order(family: str, normalize: bool, order: int) -> None:
    with emulation(order, 1):
        odds = nonfinite.odd_ones(nonfinite.CLASS_OPERANDS, 1)
        nonfinite.check_class("emulated", family, normalize, FLOAT, odds)


def odd_map(case: ClassCase, odd: nonfinite.Odd) -> ClassCase:
    """The case with an odd pixel, message, bias or weight."""
    tensors = {name: getattr(case, name).clone() for name in nonfinite.CLASS_OPERANDS}
    places = {"a": (2, 1, 2, 3), "table": (2, 5), "bias": (1,), "weight": (2,)}
    for name, value in odd.items():
        tensors[name][places[name]] = value
    return replace(case, **tensors)


def expect_pooled(case: ClassCase, **options: bool) -> None:
    """Value and gradients of the fused kernel against pooling and loss of the reference."""
    assert fused(case)
    wrt = case.names[:1] if options else case.names
    got = case.call(True, case.operands(), wrt=wrt, **options)
    large = {x: nonfinite.exact(getattr(case, x)) for x in nonfinite.CLASS_OPERANDS}
    with bk.use_backend("reference"):
        truth = replace(case, **large)
        want = truth.call(True, truth.operands(), wrt=wrt, **options)
    nonfinite.expect_pattern((got[0], *got[1]), (want[0], *want[1]), case)


POOLED = [("gaussian", False), ("gaussian", True), ("gaussian-precision", False), (None, False)]


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize(("family", "normalize"), POOLED, ids=str)
def test_pooled_class_losses(family: str | None, normalize: bool, memory: str) -> None:
    """In the kernel that pools: cells that divide the map, that overlap, and their gradient."""
    for size, order in (((4, 6), 0), ((5, 7), 1)):
        case = make_pooled(family, (5, 2, *size), 2, memory, classes=3, reduction="sum")
        case = replace(
            case,
            labels=nonfinite.LABELS,
            bias=torch.randn(3),
            weight=torch.randn(5),
            normalize_message=normalize,
            tilt=nonfinite.TILT if family is not None else 1.0,
        )
        with emulation(order):
            for odd in nonfinite.odd_ones(nonfinite.CLASS_OPERANDS):
                expect_pooled(odd_map(case, odd))
            for odd in nonfinite.odd_ones(nonfinite.CLASS_OPERANDS, 1):
                expect_pooled(odd_map(case, odd), compact_grad=True)


@pytest.mark.parametrize("kind", ["mean", "max", "std"])
def test_pooling_in_front(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Odd pixels, with the pooling in a kernel of its own where the loss's kernel has none."""
    # Within `emulation` the functions go to the emulator already.
    serve = {"emulated": nullcontext, "reference": lambda: bk.use_backend("reference")}
    monkeypatch.setattr(nonfinite, "use_backend", lambda name: serve[name]())
    table = torch.randn(nonfinite.CLASSES, 8, generator=torch.Generator().manual_seed(4))
    check, labels = partial(nonfinite.check_pooled, "emulated", kind), nonfinite.LABELS
    for family in ("gaussian", "gaussian-precision", "bernoulli"):
        check(bk.evidence_loss_value_and_grad, table, family=family, labels=labels)
        check(bk.class_evidence_loss_value_and_grad, table, labels, family=family,
              wrt=("a", "table"))  # fmt: skip
    check(bk.linear_cross_entropy_value_and_grad, table, labels, wrt=("x", "weight"))


def test_an_infinite_weight_of_many_cells() -> None:
    """More latents than threads: gradients of cells change places only once all are there."""
    for memory, order in itertools.product(MEMORY, ORDERS):
        case = make_pooled("gaussian-precision", (2, 150, 2, 4), 2, memory, classes=3)
        case = case.with_options(bias=torch.randn(3), weight=torch.tensor([torch.inf, 1.0]))
        with emulation(order):
            expect_pooled(case)


@pytest.mark.parametrize("classes", [8, 5], ids="{} classes".format)
def test_rows_of_scores(classes: int) -> None:
    """The kernel behind torch's product: odd scores at the label and beside it, none but -inf."""
    scores, labels = torch.randn(8, classes), torch.arange(8) % classes
    for row, (value, beside) in enumerate(itertools.product(nonfinite.ODD, (0, 1))):
        scores[row, (labels[row] + beside) % classes] = value
    scores[7] = -torch.inf
    for weight in (None, torch.tensor([1, torch.inf, 0, 2, -torch.inf, torch.nan, 1, 1])):
        slopes, want_slopes = torch.empty_like(scores), torch.empty_like(scores).double()
        got = op("emulated", "softmax_rows")(scores, labels, None, weight, slopes)
        truth = (scores.double(), labels, None, nonfinite.exact(weight), want_slopes)
        want = op("reference", "softmax_rows")(*truth)
        nonfinite.expect_pattern((got, slopes), (want, want_slopes), weight)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(family: str, loss: str, gathered: bool) -> None:
    odds = nonfinite.odd_ones(("a", "b"))
    nonfinite.check_pair("emulated", family, loss, gathered, FLOAT, odds)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_next_input(family: str) -> None:
    nonfinite.check_next("emulated", family, 0.25)
