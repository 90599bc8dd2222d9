"""Infinities and NaN in every operand: the same pattern as the reference in float64."""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import oracle
import pytest
import torch
from torch import Tensor

from bll_kernels.ops import op

ODD = (torch.inf, -torch.inf, torch.nan)
CLASSES, ROWS, WIDTH = 3, 5, 8
#: One operand, or two, with an odd element.
CLASS_OPERANDS = ("a", "table", "bias", "weight")
PAIR_OPERANDS = ("a", "b", "weight")
TESTS = (torch.isnan, torch.isposinf, torch.isneginf)


def odd_ones(names: tuple[str, ...]) -> list[dict[str, float]]:
    """Every way to make one or two of the operands odd."""
    return [
        dict(zip(chosen, values, strict=True))
        for count in (1, 2)
        for chosen in itertools.combinations(names, count)
        for values in itertools.product(ODD, repeat=count)
    ]


def operands(family: str, rows_of_b: int, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    latents = (2, WIDTH) if family == "gaussian-diagonal" else (WIDTH,)
    shapes = {
        "a": (ROWS, *latents),
        "b": (rows_of_b, *latents),
        "table": (CLASSES, *latents),
        "bias": (CLASSES,),
        "weight": (ROWS,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def spoil(values: dict[str, Tensor], odd: dict[str, float]) -> None:
    places = {"a": (1, -3), "b": (2, -3), "table": (2, -3), "bias": (1, 0), "weight": (2, 0)}
    for name, value in odd.items():
        row, column = places[name]
        values[name][row : row + 1].view(-1)[column] = value


def options(family: str) -> tuple[Any, ...]:
    return (family, 4 if family == "categorical" else 1, 0.5)


def expect_pattern(got: tuple[Tensor, ...], want: tuple[Tensor, ...], what: object) -> None:
    for name, mine, reference in zip(("value", "da", "db", "dbias"), got, want, strict=False):
        for test in TESTS:
            assert torch.equal(test(mine), test(reference)), (what, name, mine, reference)


def double(x: Tensor) -> Tensor:
    return x.double()


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_class_losses(backend: str, family: str, normalize: bool) -> None:
    if normalize and family in ("gaussian-precision", "gaussian-diagonal"):
        pytest.skip("messages of this family are densities already")
    labels = torch.tensor([0, 1, 2, 1, 2])
    for odd in odd_ones(CLASS_OPERANDS):
        values = operands(family, ROWS, zlib.crc32(str(odd).encode()))
        spoil(values, odd)
        a, table, bias, weight = (values[name] for name in CLASS_OPERANDS)
        rest = (*options(family), normalize, 1.25, "sum", True, True, True)
        loss = "class_loss_value_and_grad"
        got = op(backend, loss)(a, table, labels, bias, weight, *rest)
        exact = (double(a), double(table), labels, double(bias), double(weight))
        expect_pattern(got, op("reference", loss)(*exact, *rest), odd)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(backend: str, family: str, loss: str, gathered: bool) -> None:
    labels = torch.tensor([0, 1, 2, 1, 2]) if gathered else None
    for odd in odd_ones(PAIR_OPERANDS):
        rows = CLASSES if gathered else ROWS
        values = operands(family, rows, zlib.crc32(str(odd).encode()))
        spoil(values, odd)
        a, b, weight = (values[name] for name in PAIR_OPERANDS)
        rest = (*options(family), loss, 1.25, "sum", True, True)
        got = op(backend, "pair_loss_value_and_grad")(a, b, labels, weight, *rest)
        exact = (double(a), double(b), labels, double(weight))
        want = op("reference", "pair_loss_value_and_grad")(*exact, *rest)
        expect_pattern(got, want, odd)
