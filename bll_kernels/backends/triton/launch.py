"""How kernels are launched: tile tables, options, and a recorder for ahead-of-time compilation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from . import REPAIRS_LOOPS

if REPAIRS_LOOPS:
    from . import interpreter_triton

    interpreter_triton.repair()


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


def element_tile(width: int, grouped: bool) -> Tile:
    """Tile of an element kernel over rows of `width` latents: wide first, so that loads are too.

    Half as large where every element has its group's statistics in registers too.
    """
    size = ELEMENTS // 2 if grouped else ELEMENTS
    columns = min(power_of_two(width), size)
    return Tile(size // columns, columns, 4)


#: Programs that keep a large GPU busy; sections of a reduction are cut until there are as many.
BUSY = 1024


def table_tile(width: int, grouped: bool) -> Tile:
    """Tile of a class-table gradient: it walks over the rows of a class, a few at a time.

    Half as many where every element has its group's statistics in registers too; never more than
    threads, each of which would hold the places of several.
    """
    columns = min(power_of_two(width), 256)
    return Tile(min(128, ELEMENTS // columns // (2 if grouped else 1)), columns, 4)


def sections(rows: int, owners: int, chunks: int, tile: Tile) -> int:
    """Sections into which the rows of every class are cut, each reduced by its own program.

    As many as keep a GPU busy where classes are equal. One that has most of the rows takes more:
    as long as an equal share would give every section 64 rows, their sums are few beside the rows.

    Args:
        rows: rows in all.
        owners: classes, and rows without one where they count.
        chunks: programs per section of a class: column tiles, or groups.
        tile: rows that one program takes at a time.
    """
    busy = ceil_div(BUSY, max(owners * chunks, 1))
    unequal = min(rows // (max(64, 4 * tile.rows) * max(owners, 1)), 256)
    return max(1, min(max(busy, unequal), ceil_div(rows, 4 * tile.rows)))


def section_tile(parts: int) -> Tile:
    """Sections (rows) and numbers of each (columns) that are added up at a time."""
    return Tile(1, ELEMENTS, 4) if parts <= 16 else Tile(32, ELEMENTS // 32, 4)


#: Longest group that one program holds in registers: at twice the length the kernel spills.
LONGEST_TILE = 4096


def group_tile(group: int, table: bool = False) -> Tile | None:
    """Tile of the row kernel over groups of `group` latents; None where a group is too long.

    A quarter as many rows where a class table's gradient is in registers too.
    """
    columns = power_of_two(group)
    if columns > LONGEST_TILE:
        return None
    rows = (ELEMENTS // 4 if table else ELEMENTS) // columns
    return Tile(max(1, rows), columns, min(16, max(4, columns // 256)))


#: Tile of the sweeps over longer groups.
SWEEP = Tile(1, 4096, 8)


class ClassTile(NamedTuple):
    """A tile of rows, classes and latents, and its warps."""

    rows: int
    classes: int
    columns: int
    warps: int


#: Tile of the class kernels. The longest side is that of the latents, which loads run along.
CLASS_TILE = ClassTile(4, 4, 64, 4)


def score_parts(rows: int, classes: int, width: int) -> int:
    """Parts into which the latents of a score are cut, each summed by its own program."""
    tile = CLASS_TILE
    programs = ceil_div(rows, tile.rows) * ceil_div(classes, tile.classes)
    return max(1, min(ceil_div(BUSY, max(programs, 1)), ceil_div(width, 4 * tile.columns), 16))


def class_table_parts(rows: int, classes: int, width: int) -> int:
    """Parts into which the rows of a class-table gradient are cut."""
    tile = CLASS_TILE
    programs = ceil_div(classes, tile.classes) * ceil_div(width, tile.columns)
    return max(1, min(ceil_div(BUSY, max(programs, 1)), ceil_div(rows, 4 * tile.rows)))


#: Tile of the Gram kernels: rows, rows they meet ("classes"), latents of one product.
GRAM_TILE = ClassTile(16, 32, 32, 4)


def gram_parts(rows: int) -> int:
    """Parts of the sum over the rows that a row meets, each kept as [rows, width]."""
    tile = GRAM_TILE
    wanted = ceil_div(BUSY, max(ceil_div(rows, tile.rows), 1))
    tiles = ceil_div(rows, tile.classes)
    share = ceil_div(tiles, max(1, min(wanted, tiles, 8)))
    return ceil_div(tiles, max(share, 1))  # none is empty


def softmax_tile(classes: int) -> Tile:
    """Tile of the softmax over classes; more classes than columns are swept."""
    columns = min(power_of_two(classes), 4096)
    return Tile(max(1, ELEMENTS // columns), columns, 4 if columns <= 2048 else 8)


def pool_tile(pixels: int, channels_last: bool) -> Tile:
    """Planes and pixels of a cell that one program pools; loads run along what is contiguous."""
    columns = min(power_of_two(pixels), 16 if channels_last else 256)
    return Tile(min(64, ELEMENTS // columns), columns, 4)


def spread_tile(pixels: int, channels_last: bool) -> Tile:
    """Planes and pixels of one program of the pooling gradient."""
    columns = min(power_of_two(pixels), 16 if channels_last else 256)
    return Tile(ELEMENTS // columns if not channels_last else 64, columns, 4)


class ChannelTile(NamedTuple):
    """A tile of rows, channels and cells of a channel, and its warps."""

    rows: int
    group: int
    cells: int
    warps: int


def channel_tile(cells: int) -> ChannelTile:
    """Tile of standardised channels of `cells` numbers a row; loads run along a row."""
    columns = min(power_of_two(cells), 256)
    group = max(1, 32 // columns)
    return ChannelTile(2 * ELEMENTS // (group * columns), group, columns, 4)


#: Numbers of its channels that a program reads without others sharing them; parts have half.
CHANNEL_NUMBERS = 32768


def channel_parts(rows: int, channels: int, width: int) -> tuple[int, int]:
    """Parts of the rows of standardised channels, none empty, and rows of each but the last.

    Args:
        rows: rows in all, 1 or more.
        channels: of a row.
        width: numbers of a row, its channels' cells.
    """
    cells = width // channels
    tile = channel_tile(cells)
    numbers = rows * min(tile.group, channels) * cells
    if numbers <= CHANNEL_NUMBERS:
        return 1, rows
    wanted = ceil_div(BUSY, ceil_div(channels, tile.group))
    parts = min(wanted, ceil_div(numbers, CHANNEL_NUMBERS // 2), 256)
    share = ceil_div(ceil_div(rows, parts), tile.rows) * tile.rows  # whole tiles
    return ceil_div(rows, share), share


def channel_merge(tile: ChannelTile) -> int:
    """Parts that a program merges at a time."""
    return min(128, ELEMENTS // tile.group)
