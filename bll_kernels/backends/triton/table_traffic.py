"""Bytes that the two forms of a class table's gradient move: what chooses between them.

In one pass the rows of a class follow each other, so that every read and write of a row stands
alone in memory and moves whole sectors. In two passes all but the gradient of the table is made
with the rows in their order, for a second read of them. What both forms move alike is left out:
the sort, the table, which comes from the cache, and its sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from bll_kernels.backends.triton.launch import ceil_div, element_tile, table_tile
from bll_kernels.backends.triton.problem import NextInput, PairProblem

#: Bytes that memory moves at least.
SECTOR: Final = 32
#: Bytes of a label, and of a row's place in the order.
PLACE: Final = 8


def scattered(size: int, pieces: int, classes: int) -> int:
    """Bytes moved per row of `size` bytes when rows are taken class by class.

    Args:
        size: bytes of a row, which follows the one before it.
        pieces: that a row is taken in, each but the last whole sectors long.
        classes: as many times as all of the rows is the most that is moved.
    """
    whole = size + pieces * (SECTOR - math.gcd(size, SECTOR))
    return min(whole, classes * size)


@dataclass(frozen=True)
class RowBytes:
    """What is read and written of a row of latents with its class's message.

    Attributes:
        loaded: bytes of each plane of `a`.
        stored: bytes of each plane of the gradient to `a`, where it is wanted.
        factors: per-row numbers that gradients and values are multiplied with, float32.
        values: whether rows have values of their own, rather than a sum per program.
        classes: kinds of rows: classes, and rows without one.
        pieces: that the pass over the table takes a row in.
        steps: that the pass over the rows takes a row in.
        following: bytes of the next input, 0 where it is not wanted.
    """

    loaded: tuple[int, ...]
    stored: tuple[int, ...]
    factors: int
    values: bool
    classes: int
    pieces: int
    steps: int
    following: int = 0

    @property
    def outputs(self) -> tuple[int, ...]:
        """Bytes of everything that is stored per row."""
        return (*self.stored, self.following) if self.following else self.stored

    def table_pass(self) -> int:
        """Rows read class by class, for the gradient of the table alone."""
        rows = sum(scattered(size, self.pieces, self.classes) for size in self.loaded)
        factors = self.factors * self.pieces * scattered(4, 1, self.classes)
        return rows + factors + PLACE * self.pieces

    def one_pass(self) -> int:
        """Everything from the rows read class by class."""
        outputs = sum(scattered(size, self.pieces, self.classes) for size in self.outputs)
        values = self.values * self.pieces * scattered(4, 1, self.classes)
        return self.table_pass() + outputs + values

    def two_passes(self) -> int:
        """Everything but the gradient of the table from the rows in their order."""
        factors = (4 * self.factors + PLACE) * self.steps
        values = 4 * self.values * self.steps
        return self.table_pass() + sum(self.loaded) + sum(self.outputs) + factors + values

    def once(self) -> bool:
        """Whether one pass moves no more, the next input aside: it may change no other bits."""
        alone = replace(self, following=0)
        return alone.one_pass() <= alone.two_passes()


def row_bytes(
    problem: PairProblem, grad_a: Tensor | None, with_value: bool, following: NextInput | None
) -> RowBytes:
    """What a problem of independent latents with a class table moves per row."""
    a, width = problem.a.tensor, problem.a.width
    planes = (width * a.element_size(),) * problem.planes
    pieces = ceil_div(width, table_tile(width, False).columns)
    return RowBytes(
        loaded=planes,
        stored=planes if grad_a is not None else (),
        factors=(problem.weight is not None) + (problem.grad is not None),
        values=with_value and not problem.adds_programs(pieces),
        classes=problem.b.count + 1,
        pieces=pieces,
        steps=ceil_div(width, element_tile(width, False).columns),
        following=0 if following is None else width * following.out.element_size(),
    )
