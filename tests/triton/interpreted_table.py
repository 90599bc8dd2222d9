"""Class tables of independent latents: the bytes that either form moves, and which one is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import check_pair, make_pair
from torch import Tensor
from triton.runtime import interpreter

from bll_kernels.backends.triton import pair
from bll_kernels.backends.triton.table_traffic import SECTOR, RowBytes, scattered
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

ROWS, CLASSES = 64, 16
FAMILIES = tuple(name for name in oracle.FAMILIES if name != "categorical")
every_family = pytest.mark.parametrize("family", FAMILIES)


@dataclass
class Memory:
    """Stands for the interpreter's loads and stores, and counts bytes of tensors it knows."""

    inner: Any
    loaded_from: list[Tensor] = field(default_factory=list)
    stored_to: list[Tensor] = field(default_factory=list)
    whole_sectors: bool = False
    paused: bool = False
    loaded: int = 0
    stored: int = 0
    elements: int = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def load(self, at: Any, mask: Any, other: Any, dtype: Any) -> Any:
        for tensor in self.loaded_from:
            moved, elements = self.bytes_of(tensor, at, mask)
            self.loaded += moved
            self.elements += elements if tensor is self.loaded_from[0] else 0
        return self.inner.load(at, mask, other, dtype)

    def store(self, at: Any, value: Any, mask: Any) -> Any:
        self.stored += sum(self.bytes_of(tensor, at, mask)[0] for tensor in self.stored_to)
        return self.inner.store(at, value, mask)

    def bytes_of(self, tensor: Tensor, at: Any, mask: Any) -> tuple[int, int]:
        """Bytes of a tensor in one access, and elements."""
        if self.paused:
            return 0, 0
        begin = tensor.untyped_storage().data_ptr()
        assert begin % SECTOR == 0
        addresses = np.broadcast_to(at, np.shape(mask))[mask] - np.uint64(begin)
        mine = addresses[addresses < tensor.untyped_storage().nbytes()]
        if self.whole_sectors and tensor.dtype != torch.int64:  # places in the order are a run
            return SECTOR * len(np.unique(mine // np.uint64(SECTOR))), mine.size
        return mine.size * tensor.element_size(), mine.size


def measure(
    monkeypatch: pytest.MonkeyPatch, once: bool, run: Callable[[], Any], operands: list[Tensor]
) -> tuple[Memory, RowBytes]:
    """What one form moves, and what was expected of the rows."""
    memory = Memory(interpreter._interpreter, list(operands))
    found: list[RowBytes] = []

    def table_elements(*arguments: Any, **rest: Any) -> Tensor | None:
        memory.whole_sectors = True
        return whole(*arguments, **rest)

    def rows_by_label(*arguments: Any) -> tuple[Tensor, Tensor]:
        order, start = sort(*arguments)
        memory.loaded_from.append(order)
        return order, start

    def partial_values(*arguments: Any) -> Tensor:
        memory.stored_to.append(values(*arguments))
        return memory.stored_to[-1]

    def row_bytes(problem: Any, grad_a: Tensor, with_value: bool, following: Any) -> RowBytes:
        memory.stored_to += [grad_a] if following is None else [grad_a, following.out]
        found.append(count(problem, grad_a, with_value, following))
        return found[-1]

    def finish(*arguments: Any) -> Tensor:
        memory.paused = True  # what comes behind either form, from values
        value = end(*arguments)
        memory.paused = False
        return value

    whole, sort, values, count, end = (
        pair.table_elements, pair.rows_by_label, pair.partial_values, pair.row_bytes, pair.finish
    )  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr(interpreter, "_interpreter", memory)
        for replacement in (table_elements, rows_by_label, partial_values, row_bytes, finish):
            patch.setattr(pair, replacement.__name__, replacement)
        patch.setattr(RowBytes, "once", lambda self: once)
        run()
    return memory, found[0]


@every_family
@pytest.mark.parametrize(("width", "dtype"), [(3, torch.float32), (300, torch.bfloat16)], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_bytes_of_both_forms(
    monkeypatch: pytest.MonkeyPatch, family: str, width: int, dtype: torch.dtype, reduction: str
) -> None:
    labels, weight = torch.arange(ROWS) % CLASSES, torch.rand(ROWS)
    a = make_pair(family, batch=(ROWS,), width=width, dtype=dtype).a
    table = make_pair(family, batch=(CLASSES,), width=width, dtype=dtype, seed=1).b
    options = (family, 1, 0.5, "kl_full", 1.0, reduction, True, True)

    def run() -> None:
        given = weight if reduction == "none" else None
        results.append(op("triton", "pair_loss_next")(
            a, table, labels, given, *options, 0.5, torch.float16
        ))  # fmt: skip

    results: list[tuple[Tensor, ...]] = []
    operands = [a, labels, weight]
    for once in (True, False):
        memory, row = measure(monkeypatch, once, run, operands)
        assert memory.elements == (1 if once else 2) * a.numel()
        # Values of programs are not of rows, and left out of the expectation.
        programs = 0 if row.values else memory.stored - sum_of_outputs(row, once)
        assert 0 <= programs <= 4 * 17 * 64 * row.pieces
        want = row.one_pass() if once else row.two_passes()
        assert memory.loaded + memory.stored - programs == ROWS * want
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two)


def sum_of_outputs(row: RowBytes, once: bool) -> int:
    """Bytes stored to whole outputs."""
    if not once:
        return ROWS * sum(row.outputs)
    return ROWS * sum(scattered(size, row.pieces, row.classes) for size in row.outputs)


@pytest.mark.parametrize("size", [1, 2, 6, 12, 32, 40, 48, 96, 600])
def test_rows_that_stand_alone_move_whole_sectors(size: int) -> None:
    def touched(begin: int, end: int) -> int:
        return SECTOR * (-(-end // SECTOR) - begin // SECTOR)

    for pieces in (1, 2):
        cut = size if pieces == 1 else size // 64 * 32
        rows = [(i * size, i * size + cut, (i + 1) * size) for i in range(SECTOR)]
        total = sum(touched(begin, middle) for begin, middle, _ in rows)
        if pieces == 2:
            total += sum(touched(middle, end) for _, middle, end in rows)
        if cut:
            assert scattered(size, pieces, 10**6) * SECTOR == total
    assert scattered(size, 1, 1) == size


def form(width: int, item: int, *, following: int = 0, classes: int = 1000) -> RowBytes:
    """One parameter per latent and a sum of values, in a table of many classes."""
    pieces, steps = -(-width // 256), -(-width // 1024)
    row, following = (width * item,), width * following
    return RowBytes(row, row, 0, False, classes + 1, pieces, steps, following)


def test_only_narrow_rows_are_read_twice() -> None:
    assert form(4, 2).one_pass() == 8 + 32 + 32 and form(4, 2).two_passes() == 4 * 8 + 32
    assert not form(4, 2).once() and not form(1, 4).once()
    # The next input alone would turn the choice here, and with it the bits of the rest.
    narrow = form(8, 2, following=2)
    assert narrow.one_pass() > narrow.two_passes() and narrow.once()
    for width in (16, 64, 250, 1000, 10**5):
        for item in (2, 4):
            assert form(width, item).once() and form(width, item, following=2).once()
    # Rows of few classes share their sectors.
    assert form(4, 2, classes=2).once()


@every_family
def test_narrow_and_wide_rows(family: str) -> None:
    """Either form by its own choice; a label without a class is among them elsewhere."""
    labels = torch.tensor([3, 0, 3, 1, 3, 79])
    for width in (2, 260):
        case = make_pair(family, "kl_full", batch=(6,), width=width, labels=labels)
        case = case.with_options(b=make_pair(family, batch=(80,), width=width, seed=1).b)
        check_pair(case.with_options(reduction="sum", weight=torch.rand(6), tilt=2.0))
