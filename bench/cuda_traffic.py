"""What the CUDA kernels load, store and evaluate, as functions of sizes; no GPU, no torch.

    python -m bench.cuda_traffic

prints the table of docs/gpu-kernels.md. tests/cuda/emulated_traffic.py compares every function with
counts of the emulated kernels. Sizes are whole vectors, memory is aligned, cells do not overlap and
labels exist. Loads are counted where a thread asks for them: what several blocks read of a table
comes from the cache. Partial sums, a few bytes per block, are left out.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

#: Threads of a warp: each reads a label and evaluates what the warp needs once.
WARP: Final = 32
#: Exponentials of a latent in a full KL with both gradients.
PAIR_SPECIAL: Final = {
    "bernoulli": 3,
    "gaussian": 0,
    "gaussian-precision": 0,
    "gaussian-diagonal": 2,
    "categorical": 5,
}
#: Threads of a block of the row kernel of losses that go through matmul, and of tiles.
SOFTMAX_THREADS: Final = 512
GRAM_TILE: Final = 64
#: Threads of a block of the table kernels, and those along the columns in `class_table`.
TABLE_THREADS: Final = 256
CLASS_LANES: Final = 64


@dataclass(frozen=True)
class Traffic:
    """Bytes loaded and stored, and special functions evaluated."""

    loaded: int
    stored: int
    special: int = 0

    @property
    def moved(self) -> int:
        """Bytes in both directions."""
        return self.loaded + self.stored


def _planes(family: str) -> int:
    return 2 if family == "gaussian-diagonal" else 1


def pair(family: str, latents: int, item: int, *, sweeps: int = 1) -> Traffic:
    """A full KL of dense messages with both gradients (`pair_elements`, `pair_groups`).

    Args:
        family: of the latents.
        latents: their number.
        item: bytes of the dtype.
        sweeps: times that a group is read: 1 where registers or shared memory keep it, else 4.
    """
    size = 2 * _planes(family) * latents * item
    return Traffic(sweeps * size, size, PAIR_SPECIAL[family] * latents)


def label_sort(rows: int, classes: int, chunks: int, runs: int) -> Traffic:
    """Rows sorted by label (`rank_kernel` and the three behind it).

    Args:
        rows: to be sorted.
        classes: that there are; labels outside count as one more.
        chunks: of rows that are sorted apart.
        runs: different labels of every 256 rows, added up.
    """
    buckets, counts = classes + 1, (classes + 1) * chunks
    loaded = rows * (8 + 4) + rows * (8 + 3 * 4) + 4 * counts + 4 * buckets
    stored = rows * (4 + 4) + 4 * (2 * counts + runs) + 4 * (2 * buckets + 1)
    return Traffic(loaded, stored)


def pair_table(
    family: str, rows: int, width: int, classes: int, item: int, *, sections: int, blocks: int
) -> Traffic:
    """A full KL of messages by label: value, gradient of a and of the table (`pair_table`).

    `blocks` of 256 threads read a class's message each; every row's place in the order is read by
    each of its vectors.
    """
    planes, vector = _planes(family), 16 // item
    latents = planes * rows * width
    order = 4 * rows * (width // vector)
    table = blocks * TABLE_THREADS * planes * 16
    sums = sections * classes * planes * width * (item if sections == 1 else 4)
    stored = latents * item + sums
    return Traffic(latents * item + order + table, stored, PAIR_SPECIAL[family] * rows * width)


def group_table(
    rows: int,
    width: int,
    classes: int,
    item: int,
    *,
    sections: int,
    threads: int,
    slots: int = 1,
    sweeps: int = 1,
    float_sums: bool = False,
) -> Traffic:
    """As `pair_table`, of categorical groups (`group_table`, `group_table_long`).

    Args:
        rows: of a.
        width: latents per row.
        classes: rows of the table.
        item: bytes of the dtype.
        sections: of every class's rows.
        threads: that share a row, each of which reads its place in the order.
        slots: rows that a block takes at once, each with a read of the message.
        sweeps: 1 where registers or shared memory keep latents and sums; else 4, and sums are in
            memory.
        float_sums: of the table kernel, whatever the dtype: long groups.
    """
    latents, table = rows * width, classes * width
    kept = sweeps == 1
    loaded = sweeps * latents * item + 4 * rows * threads
    loaded += slots * sections * table * item if kept else (sweeps * item + 4) * latents
    sums = sections * table * (4 if float_sums or sections > 1 else item)
    stored = latents * item + sums + (0 if kept else 4 * latents)
    return Traffic(loaded, stored, PAIR_SPECIAL["categorical"] * latents)


def class_table(
    rows: int, latents: int, classes: int, item: int, *, tile: int, sections: int
) -> Traffic:
    """Gradients of table and bias from the residual (`class_table`), a block per 64 vectors.

    `tile` classes share what is read of the rows; their messages are read once by all threads, and
    once more by those that store. Rows are whole runs of 64, classes whole tiles.
    """
    vector = 16 // item
    chunks, tiles = -(-latents // (CLASS_LANES * vector)), classes // tile
    residual = chunks * rows * classes * 4
    messages = sections * tiles * chunks * tile * 16 * (TABLE_THREADS + CLASS_LANES)
    loaded = tiles * rows * latents * item + residual + messages
    sums = sections * classes * latents * (item if sections == 1 else 4)
    return Traffic(loaded, sums)


def pool(elements: int, cells: int, item: int) -> Traffic:
    """Pooling of a map (`pool_planes`, `pool_pixels`)."""
    return Traffic(elements * item, 4 * cells)


def pool_backward(kind: str, elements: int, item: int) -> Traffic:
    """The gradient of a map: nothing of it is read for a mean."""
    reads = {"mean": 0, "max": 1, "std": 2}[kind]
    return Traffic(reads * elements * item, elements * item)


def _softmax_special(rows: int, classes: int) -> int:
    """A row's exponentials, and an exponential and a logarithm more in every lane."""
    return rows * (classes + 2 * WARP)


def class_rows(
    rows: int, latents: int, classes: int, item: int, *, together: int, gradient: bool
) -> Traffic:
    """Value, and gradient to a, of linear scores; `together` rows share a read of the table."""
    blocks = -(-rows // together)
    table = blocks * classes * latents * item
    loaded = rows * (latents * item + 8 * WARP) + (2 if gradient else 1) * table
    stored = rows * latents * item if gradient else 0
    return Traffic(loaded, stored, _softmax_special(rows, classes))


def pooled_class(
    images: int, elements: int, latents: int, classes: int, item: int, *, gradient: bool = True
) -> Traffic:
    """A map of `elements` per image and its gradient, with all between (`pooled_class`)."""
    table = images * classes * latents * item
    loaded = images * (elements * item + 8 * WARP) + (2 if gradient else 1) * table
    stored = images * elements * item if gradient else 0
    return Traffic(loaded, stored, _softmax_special(images, classes))


def softmax_rows(rows: int, classes: int, item: int) -> Traffic:
    """Rows of float32 scores to losses and slopes; the second read comes from the cache.

    At most two special functions per score: the largest score seen so far moves now and then.
    """
    loaded = rows * (2 * 4 * classes + SOFTMAX_THREADS * (8 + 4))
    return Traffic(loaded, rows * classes * item, 2 * rows * classes)


def gram(rows: int, latents: int, *, gradient: bool) -> Traffic:
    """Whole tiles of a Gram matrix, from float32 rows of length one (`gram_tiles`)."""
    tiles = rows // GRAM_TILE
    line = GRAM_TILE * latents * 4
    loaded = tiles * tiles * (3 if gradient else 2) * line
    # Sums of a run of tiles are stored after every tile.
    return Traffic(loaded, tiles * tiles * line if gradient else 0)


def class_means(rows: int, latents: int, classes: int, item: int, *, sections: int) -> Traffic:
    """Means of the rows of every class, after their sort.

    Every row's place in the order is read by each of its vectors; where a class has several
    `sections` of rows, their sums are stored and read.
    """
    order, means = 4 * rows * latents * item // 16, 4 * classes * latents
    sums = sections * means if sections > 1 else 0
    return Traffic(rows * latents * item + order + sums, means + sums)


def standardized(values: int, channels: int, *, gradient: bool = False) -> Traffic:
    """Standardised channels of float32 numbers: the second read comes from the cache.

    Of channels that one launch serves. The gradient also reads the standardised numbers.
    """
    if gradient:
        return Traffic(4 * 4 * values + 4 * channels, 4 * values)
    return Traffic(2 * 4 * values, 4 * values)


def optimizer_step(elements: int, item: int, *, states: int, checked: bool) -> Traffic:
    """One step: Adam has two states, momentum one; the finite check reads gradients once more."""
    loaded = (2 + states + checked) * elements * item
    return Traffic(loaded, (1 + states) * elements * item)


def _line(name: str, what: str, traffic: Traffic, per: int) -> str:
    def number(x: int) -> str:
        return f"{x / per:.3g}"

    loaded, stored, special = (number(getattr(traffic, f)) for f in ("loaded", "stored", "special"))
    return f"| `{name}` | {what} | {loaded} | {stored} | {special} |"


def table() -> str:
    """The Markdown table of the documentation: bfloat16, per latent, pixel, score or parameter."""
    n = 1 << 20
    lines = [
        "| kernel | per | loaded | stored | special functions |",
        "| --- | --- | --- | --- | --- |",
        *(
            _line(
                "pair_groups" if family == "categorical" else "pair_elements",
                f"latent, {family}",
                pair(family, n, 2),
                n,
            )
            for family in PAIR_SPECIAL
        ),
        _line("pair_groups_long", "latent, kept on the chip", pair("categorical", n, 2), n),
        _line("pair_groups_long", "latent, read again", pair("categorical", n, 2, sweeps=4), n),
        _line(
            "pair_table",
            "latent by label, bernoulli, 4096 x 1024, 10 classes",
            pair_table("bernoulli", 4096, 1024, 10, 2, sections=24, blocks=24 * 10 * 4),
            4096 * 1024,
        ),
        _line(
            "group_table",
            "latent by label, categorical, 4096 x 1024, 10 classes",
            group_table(4096, 1024, 10, 2, sections=64, threads=128),
            4096 * 1024,
        ),
        _line(
            "group_table_long",
            "latent by label, kept on the chip, 4096 x 32,768, 10 classes",
            group_table(4096, 32_768, 10, 2, sections=24, threads=512, float_sums=True),
            4096 * 32_768,
        ),
        _line(
            "rank_kernel and three more",
            "row, 4096 x 10 classes",
            label_sort(4096, 10, 16, 160),
            4096,
        ),
        _line("pool_planes", "pixel, cells of 7 x 7", pool(49 * n, n, 2), 49 * n),
        *(
            _line("pool_planes", f"pixel, gradient of {kind}", pool_backward(kind, n, 2), n)
            for kind in ("mean", "max", "std")
        ),
        _line(
            "class_rows",
            "latent, 4096 x 1024, 10 classes",
            class_rows(4096, 1024, 10, 2, together=4, gradient=True),
            4096 * 1024,
        ),
        _line(
            "class_table",
            "latent, 4096 x 1024, 8 classes",
            class_table(4096, 1024, 8, 2, tile=4, sections=64),
            4096 * 1024,
        ),
        _line(
            "pooled_class",
            "pixel, 256 x 28 x 28 to 4 x 4, 10 classes",
            pooled_class(1, 256 * 784, 4096, 10, 2),
            256 * 784,
        ),
        _line("softmax_rows", "score, 32,000 classes", softmax_rows(1, 32_000, 2), 32_000),
        _line(
            "gram_tiles",
            "pair of rows, 1024 x 512",
            gram(1024, 512, gradient=True),
            1024 * 1024,
        ),
        _line(
            "class_means",
            "latent, 4096 x 512, 10 classes",
            class_means(4096, 512, 10, 2, sections=12),
            1 << 21,
        ),
        _line(
            "standardize_kernel",
            "number, 512 x 64 channels of 16",
            standardized(1 << 19, 64),
            1 << 19,
        ),
        _line(
            "standardize_kernel",
            "number, its gradient",
            standardized(1 << 19, 64, gradient=True),
            1 << 19,
        ),
        _line("optim_update", "parameter, Adam", optimizer_step(n, 2, states=2, checked=False), n),
        _line(
            "optim_update",
            "parameter, Adam, with the finite check",
            optimizer_step(n, 2, states=2, checked=True),
            n,
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
