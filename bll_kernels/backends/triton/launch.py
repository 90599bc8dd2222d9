"""How kernels are launched: tile tables, options, and a recorder for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple


class Tile(NamedTuple):
    """What one program works on, and with how many warps."""

    rows: int
    columns: int
    warps: int


@dataclass(frozen=True)
class Launch:
    """One launch as it was asked for."""

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    options: dict[str, Any]


_record: list[Launch] | None = None


@contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collect launches instead of running them: what ahead-of-time compilation compiles."""
    global _record
    previous, _record = _record, []
    try:
        yield _record
    finally:
        _record = previous


def launch(kernel: Any, programs: int, warps: int, **arguments: Any) -> None:
    """Launch a one-dimensional grid; no programs, no launch."""
    if not programs:
        return
    # Contraction to fused multiply-adds is what the forms expect, whatever Triton's default.
    options = {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True}
    if _record is not None:
        _record.append(Launch(kernel, (programs,), arguments, options))
    else:
        kernel[(programs,)](**arguments, **options)


def ceil_div(x: int, y: int) -> int:
    """x / y, rounded up."""
    return -(-x // y)


def power_of_two(x: int) -> int:
    """Smallest power of two that is not below x >= 1."""
    return 1 << (x - 1).bit_length()


#: Elements of one program of an element kernel.
ELEMENTS = 1024


def element_tile(width: int) -> Tile:
    """Tile of an element kernel over rows of `width` latents: wide first, so that loads are too."""
    columns = min(power_of_two(width), ELEMENTS)
    return Tile(ELEMENTS // columns, columns, 4)


#: Programs that keep a large GPU busy; sections of a reduction are cut until there are as many.
BUSY = 1024


def table_tile(width: int) -> Tile:
    """Tile of a class-table gradient: it walks over the rows of a class, a few at a time."""
    columns = min(power_of_two(width), 256)
    return Tile(ELEMENTS // columns, columns, 4)


def sections(rows: int, tables: int, tile: Tile) -> int:
    """Sections into which the rows of every class are cut, each reduced by its own program.

    Args:
        rows: rows in all.
        tables: programs per section (classes times column tiles).
        tile: rows that one program takes at a time.
    """
    wanted = ceil_div(BUSY, max(tables, 1))
    return max(1, min(wanted, ceil_div(rows, 4 * tile.rows), 64))
