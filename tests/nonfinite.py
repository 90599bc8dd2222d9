"""Operands with infinities and NaN, and what a backend makes of them: the pattern of the float64
reference, whose own pattern is held against the definition in test_nonfinite.py."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bll_kernels import use_backend
from bll_kernels.ops import op

ODD = (torch.inf, -torch.inf, torch.nan)
CLASSES, ROWS, WIDTH, GROUP, TAU, TILT = 3, 5, 8, 4, 0.5, 1.25
CLASS_OPERANDS = ("a", "table", "bias", "weight")
PAIR_OPERANDS = ("a", "b", "weight")
LABELS = torch.tensor([0, 1, 2, 1, 2])
TESTS = (torch.isnan, torch.isposinf, torch.isneginf)

Odd = dict[str, float]


def odd_ones(names: tuple[str, ...], most: int = 2) -> list[Odd]:
    """Every way to make one operand, or up to `most` of them, odd."""
    return [
        dict(zip(chosen, values, strict=True))
        for count in range(1, most + 1)
        for chosen in itertools.combinations(names, count)
        for values in itertools.product(ODD, repeat=count)
    ]


def columns(family: str) -> tuple[int, ...]:
    """Where rows are made odd: in each of the family's parameters."""
    return (-3, -3 - WIDTH) if family == "gaussian-diagonal" else (-3,)


def operands(family: str, rows_of_b: int, odd: Odd, column: int = -3) -> dict[str, Tensor]:
    """Random operands of one call, each with the odd element it is to have."""
    generator = torch.Generator().manual_seed(zlib.crc32(str(odd).encode()))
    latents = (2, WIDTH) if family == "gaussian-diagonal" else (WIDTH,)
    shapes = {
        "a": (ROWS, *latents),
        "b": (rows_of_b, *latents),
        "table": (CLASSES, *latents),
        "bias": (CLASSES,),
        "weight": (ROWS,),
        "grad": (ROWS,),
    }
    values = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    # All in one row or class: they meet, and other rows and classes see some of them.
    places = {"bias": (1, 0)} | {name: (2, 0) for name in ("weight", "grad")}
    places |= {name: (2, column) for name in ("a", "b", "table")}
    for name, value in odd.items():
        row, place = places[name]
        values[name][row : row + 1].view(-1)[place] = value
    return values


def options(family: str) -> tuple[Any, ...]:
    return (family, GROUP if family == "categorical" else 1, TAU)


def expect_pattern(got: tuple[Tensor, ...], want: tuple[Tensor, ...], what: object) -> None:
    """NaN, inf and -inf in the same places."""
    for index, (mine, reference) in enumerate(zip(got, want, strict=True)):
        for test in TESTS:
            assert torch.equal(test(mine), test(reference)), (what, index, mine, reference)


def exact(operand: Tensor | None) -> Tensor | None:
    """The operand for the float64 reference."""
    return operand.double() if operand is not None and operand.is_floating_point() else operand


def check_op(backend: str, name: str, tensors: tuple[Tensor | None, ...], *rest: Any) -> None:
    """One op of a backend against the same op of the reference in float64."""
    got = op(backend, name)(*tensors, *rest)
    want = op("reference", name)(*map(exact, tensors), *rest)
    wrapped = [x if isinstance(x, tuple) else (x,) for x in (got, want)]
    expect_pattern(*wrapped, (name, rest, tensors))


def rounded(values: dict[str, Tensor], names: tuple[str, ...], dtype: torch.dtype) -> list[Tensor]:
    """Latents in the dtype; biases, weights and upstream gradients in its accumulate dtype."""
    latents, other = ("a", "b", "table"), torch.promote_types(dtype, torch.float32)
    return [values[name].to(dtype if name in latents else other) for name in names]


def check_class(
    backend: str, family: str, normalize: bool, dtype: torch.dtype, odds: list[Odd]
) -> None:
    """Value and gradients of the class loss, for every way of making operands odd."""
    for odd, column in itertools.product(odds, columns(family)):
        values = operands(family, ROWS, odd, column)
        a, table, bias, weight = rounded(values, CLASS_OPERANDS, dtype)
        rest = (*options(family), normalize, TILT, "sum", True, True, True)
        check_op(backend, "class_loss_value_and_grad", (a, table, LABELS, bias, weight), *rest)


def check_pair(
    backend: str, family: str, loss: str, gathered: bool, dtype: torch.dtype, odds: list[Odd]
) -> None:
    """Value and gradients of a pair loss, dense or with a class table."""
    labels = LABELS if gathered else None
    for odd, column in itertools.product(odds, columns(family)):
        values = operands(family, CLASSES if gathered else ROWS, odd, column)
        a, b, weight = rounded(values, PAIR_OPERANDS, dtype)
        rest = (*options(family), loss, TILT, "sum", True, True)
        check_op(backend, "pair_loss_value_and_grad", (a, b, labels, weight), *rest)


def check_backward(backend: str, family: str, loss: str, dtype: torch.dtype) -> None:
    """Upstream gradients per row that are odd, alone and beside an odd operand."""
    names = ("grad", *PAIR_OPERANDS)
    for odd in odd_ones(names):
        if "grad" in odd:
            grad, a, b, weight = rounded(operands(family, ROWS, odd), names, dtype)
            rest = (*options(family), loss, TILT, "none", True, True)
            check_op(backend, "pair_loss_backward", (grad, a, b, None, weight), *rest)


def check_class_backward(backend: str, family: str, normalize: bool, odds: list[Odd]) -> None:
    """Values and residuals per row, and gradients from them and upstream gradients per row."""
    names = (*CLASS_OPERANDS, "grad")
    for odd, column in itertools.product(odds, columns(family)):
        values = operands(family, ROWS, odd, column)
        a, table, bias, weight, grad = rounded(values, names, torch.float32)
        rest = (*options(family), normalize, TILT)
        passes = []
        for name, (x, b, c, w, upstream) in (
            (backend, (a, table, bias, weight, grad)),
            ("reference", tuple(map(exact, (a, table, bias, weight, grad)))),
        ):
            value, residual = op(name, "class_loss")(x, b, LABELS, c, w, *rest, "none")
            backward = (upstream, residual, x, b, *rest, True, True, True)
            passes.append((value, residual, *op(name, "class_loss_backward")(*backward)))
        expect_pattern(*passes, odd)


def check_next(backend: str, family: str, mix: float) -> None:
    """The next block's input."""
    for odd, column in itertools.product(odd_ones(("a", "b")), columns(family)):
        a, b = rounded(operands(family, ROWS, odd, column), ("a", "b"), torch.float32)
        rest = (*options(family), "evidence", TILT, "sum", True, True, mix)
        got = op(backend, "pair_loss_next")(a, b, None, None, *rest, torch.float32)
        want = op("reference", "pair_loss_next")(
            a.double(), b.double(), None, None, *rest, torch.float64
        )
        expect_pattern(got, want, (odd, mix))


def maps(channels_last: bool) -> Iterator[tuple[Tensor, float]]:
    """Maps with one odd pixel, and its value."""
    for value in ODD:
        x = torch.randn(ROWS, 2, 4, 6, generator=torch.Generator().manual_seed(3))
        x[1, 1, 2, 3] = value
        yield (x.contiguous(memory_format=torch.channels_last) if channels_last else x), value


def check_pooled(backend: str, kind: str, function: Any, *arguments: Any, **rest: Any) -> None:
    """A public twin behind pooling, of maps with an odd pixel, in both memory layouts."""
    for channels_last in (False, True):
        for x, value in maps(channels_last):
            with use_backend(backend):
                got = function(x, *arguments, pool=(kind, 2), **rest)
            with use_backend("reference"):
                want = function(x.double(), *map(exact, arguments), pool=(kind, 2), **rest)
            expect_pattern((got[0], *got[1]), (want[0], *want[1]), (kind, channels_last, value))
