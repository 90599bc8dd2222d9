"""Bytes moved and special functions evaluated per element, counted by hand.

A *unit* is one pass over the tensor of latents. These are the floors an implementation is
measured against: every input read once, every output written once. Class tables and per-row
numbers are small and cached, and not counted.
"""

from __future__ import annotations

#: exp, log, expm1 or reciprocal evaluations per latent for a loss with its gradients, where the
#: logs of several latents share one evaluation.
SPECIAL_FUNCTIONS = {
    "bernoulli": 3,
    "gaussian": 0,
    "gaussian-precision": 0,
    "gaussian-diagonal": 3,
    "categorical": 2,
}


def pair_bytes(elements: int, itemsize: int, *, grad_b: bool, table: bool = False) -> int:
    """Bytes of a pair loss with its gradients: read a (and a dense b), write da (and db)."""
    units = 2 + (0 if table else 1) + (1 if grad_b and not table else 0)
    return units * elements * itemsize


def next_units(next_itemsize: int, itemsize: int) -> float:
    """Units that the next block's input adds to a pair loss: its write alone."""
    return next_itemsize / itemsize


def class_bytes(elements: int, itemsize: int) -> int:
    """Bytes of a class loss with its gradients: a is read in both halves, da is written."""
    return 3 * elements * itemsize


def pooled_class_bytes(map_elements: int, itemsize: int) -> int:
    """The same with mean pooling in front: read the map, write its gradient."""
    return 2 * map_elements * itemsize


def copy_bytes(elements: int, itemsize: int) -> int:
    """Bytes of a plain copy: one read, one write."""
    return 2 * elements * itemsize


def gram_bytes(rows: int, latents: int, itemsize: int) -> int:
    """Bytes of a Gram loss with its gradient: read the rows, write theirs; B x B never exists."""
    return 2 * rows * latents * itemsize


def means_bytes(rows: int, latents: int, classes: int, itemsize: int) -> int:
    """Bytes of class means: read the rows, write the means."""
    return (rows + classes) * latents * itemsize


def standardized_map_bytes(map_elements: int, cells: int, itemsize: int) -> int:
    """Bytes of pooling, standardising and the way back.

    Read the map, write its gradient; cells, float32, are written, read, written standardised, read
    beside their gradient, and the gradient of the cells is written and read.
    """
    return 2 * map_elements * itemsize + 7 * 4 * cells


def gram_flops(rows: int, latents: int) -> int:
    """Multiplications and additions of a Gram loss: the products of all rows, and their pull."""
    return 4 * rows * rows * latents


def linear_class_flops(rows: int, latents: int, classes: int) -> int:
    """Multiplications and additions of a linear class loss: scores, da and dtable."""
    return 3 * 2 * rows * latents * classes


def matmul_class_bytes(rows: int, latents: int, classes: int, itemsize: int) -> int:
    """Bytes of a class loss through matmul with both gradients, operands moved once per product.

    Scores are written in float32, read twice by the row kernel, and left in the operands' dtype
    for two products. The products are bound by arithmetic, not by these bytes.
    """
    scores = rows * classes * (4 + 2 * 4 + itemsize + 2 * itemsize)
    operands = 3 * (rows + classes) * latents * itemsize
    return scores + operands
