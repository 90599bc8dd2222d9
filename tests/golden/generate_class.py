"""The class_<family>.tsv tables: -log softmax over classes of the log-evidence, at 140 digits.

``s_c = A(a + b_c) - A(a) - [A(b_c)] + bias_c`` per latent, summed over the row's latents; the
gradients are numerical derivatives of the value. Started by ``generate.py``.

Columns: ``normalize  params  a  table  bias  label  value  da  dtable  dbias``. ``a`` has three
latents and ``table`` three classes of three latents, row by row; a row of gaussian-diagonal is
its three means, then its three log-variances.
"""

from __future__ import annotations

import random

import mpmath
from generate import GoldenFamily, Vector, add, gradient, text, vector
from mpmath import mpf

CLASSES = 3
LATENTS = 3


def latents(family: GoldenFamily, row: Vector) -> list[Vector]:
    """The row as the package lays it out -> the parameters of each latent (or group)."""
    if family.name == "categorical":
        return [row]
    planes = len(row) // LATENTS
    return [[row[p * LATENTS + j] for p in range(planes)] for j in range(LATENTS)]


def log_evidence(
    family: GoldenFamily, tau: mpf, a: Vector, message: Vector, normalize: bool
) -> mpf:
    total = mpf(0)
    for x, y in zip(latents(family, a), latents(family, message), strict=True):
        alpha, beta = family.alpha(x), family.beta(y, tau)
        total += family.log_partition(add(alpha, beta)) - family.log_partition(alpha)
        if normalize or family.density:
            total -= family.log_partition(beta)
    return total


def class_value(
    family: GoldenFamily,
    tau: mpf,
    normalize: bool,
    label: int,
    a: Vector,
    table: Vector,
    bias: Vector,
) -> mpf:
    size = len(table) // CLASSES
    scores = [
        log_evidence(family, tau, a, table[c * size : (c + 1) * size], normalize) + bias[c]
        for c in range(CLASSES)
    ]
    top = max(scores)
    return top + mpmath.log(mpmath.fsum(mpmath.exp(s - top) for s in scores)) - scores[label]


def class_points(family: GoldenFamily) -> list[tuple[list[float], list[float], list[float], int]]:
    rng = random.Random(f"golden class {family.name}")
    planes = 2 if family.name == "gaussian-diagonal" else 1
    points = []
    spreads = [(2, 1)] * 10 + [(2, 1e-2)] * 4 + [(1, 1e-4)] * 2 + [(8, 3)] * 4 + [(20, 0.3)] * 2
    if planes == 1:
        spreads += [(40, 15), (60, 20)]
    for i, (a_spread, b_spread) in enumerate(spreads):
        a = [rng.gauss(0, a_spread) for _ in range(LATENTS)]
        table = [[rng.gauss(0, b_spread) for _ in range(LATENTS)] for _ in range(CLASSES)]
        if planes == 2:
            a += [rng.uniform(-2, 2) for _ in range(LATENTS)]
            table = [row + [rng.uniform(-3, 3) for _ in range(LATENTS)] for row in table]
        bias = [0.0] * CLASSES if i % 3 == 0 else [rng.gauss(0, 0.5) for _ in range(CLASSES)]
        points.append((a, [v for row in table for v in row], bias, i % CLASSES))
    return points


def class_table(family: GoldenFamily) -> str:
    """The text of ``class_<family>.tsv``."""
    lines = ["#normalize\tparams\ta\ttable\tbias\tlabel\tvalue\tda\tdtable\tdbias"]
    taus = (0.25, 1.0, 4.0, 2.0**-10)
    for normalize in (False,) if family.density else (False, True):
        for i, (a_raw, table_raw, bias_raw, label) in enumerate(class_points(family)):
            tau = taus[i % len(taus)] if family.name == "gaussian-precision" else 1.0
            a, table, bias = vector(a_raw), vector(table_raw), vector(bias_raw)

            def value(a: Vector, table: Vector, bias: Vector) -> mpf:
                return class_value(family, mpf(tau), normalize, label, a, table, bias)  # noqa: B023

            row = (
                value(a, table, bias),
                gradient(lambda x: value(x, table, bias), a),  # noqa: B023
                gradient(lambda x: value(a, x, bias), table),  # noqa: B023
                gradient(lambda x: value(a, table, x), bias),  # noqa: B023
            )
            params = f"tau={tau!r}" if family.name == "gaussian-precision" else "-"
            lines.append(
                "\t".join(
                    [str(int(normalize)), params, text(a), text(table), text(bias), str(label)]
                    + [text(part) for part in row]
                )
            )
    return "\n".join(lines) + "\n"
