"""Writes the golden tables from the log-partition alone, with mpmath.

Nothing here knows a closed form of a loss or of a gradient: a family is its natural parameters
and its log-partition ``A``. The values are the generic identities of an exponential family

    KL(rho || alpha)  = (r - a) . A'(r) - A(r) + A(a)
    KL(alpha || rho)  = (a - r) . A'(a) - A(a) + A(r)
    -log E_alpha[beta] = A(a) + C(b) - A(a + b)

with ``r`` the natural parameters of rho, and the gradients are numerical derivatives of these
values at 140 digits; where a loss holds rho constant, ``r`` is held constant. All numbers are
right to more than the 25 digits written.

Run ``python tests/golden/generate.py`` to rewrite ``<family>.tsv`` and ``class_<family>.tsv``.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import mpmath
from mpmath import mp, mpf

mp.dps = 140
DIGITS = 25
NEGLIGIBLE = mpf(10) ** -100

Vector = list[mpf]
Scalar = Callable[[Vector], mpf]

LOSSES = ("kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence")


@dataclass(frozen=True)
class GoldenFamily:
    """An exponential family as the tables need it.

    Attributes:
        name: The name the package uses.
        log_partition: ``A`` of a vector of natural parameters of one latent (or group).
        alpha: Maps the numbers the package takes as ``a`` to natural parameters.
        beta: The same for ``b``, with the family's message precision as second argument.
        density: Whether beta is a density in z, so that ``C = A``; else ``C = 0``.
    """

    name: str
    log_partition: Scalar
    alpha: Callable[[Vector], Vector]
    beta: Callable[[Vector, mpf], Vector]
    density: bool


def gaussian_partition(eta: Vector) -> mpf:
    """Log-partition of exp(eta_0 z + eta_1 z^2) over the real line."""
    return -(eta[0] ** 2) / (4 * eta[1]) + mpmath.log(mp.pi / -eta[1]) / 2


def mean_logvar(x: Vector) -> Vector:
    """Natural parameters of a Gaussian from its mean and log-variance."""
    precision = mpmath.exp(-x[1])
    return [x[0] * precision, -precision / 2]


def identity(x: Vector) -> Vector:
    return x


FAMILIES = (
    GoldenFamily(
        "bernoulli",
        lambda x: mpmath.log1p(mpmath.exp(x[0])),
        identity,
        lambda x, tau: x,
        density=False,
    ),
    GoldenFamily("gaussian", lambda x: x[0] ** 2 / 2, identity, lambda x, tau: x, density=False),
    GoldenFamily(
        "gaussian-precision",
        gaussian_partition,
        lambda x: [x[0], mpf(-1) / 2],
        lambda x, tau: [tau * x[0], -tau / 2],
        density=True,
    ),
    GoldenFamily(
        "gaussian-diagonal",
        gaussian_partition,
        mean_logvar,
        lambda x, tau: mean_logvar(x),
        density=True,
    ),
    GoldenFamily(
        "categorical",
        lambda x: mpmath.log(mpmath.fsum(mpmath.exp(v) for v in x)),
        identity,
        lambda x, tau: x,
        density=False,
    ),
)


def add(x: Vector, y: Vector) -> Vector:
    return [u + v for u, v in zip(x, y, strict=True)]


def bregman(partition: Scalar, p: Vector, q: Vector) -> mpf:
    """KL(EF(p) || EF(q)) from the log-partition: its slope along p - q gives (p - q).A'(p)."""
    step = [u - v for u, v in zip(p, q, strict=True)]
    slope = mpmath.diff(lambda t: partition([u + t * d for u, d in zip(p, step, strict=True)]), 0)
    return slope - partition(p) + partition(q)


def gradient(f: Scalar, x: Vector) -> Vector:
    return [mpmath.diff(lambda t, j=j: f([*x[:j], t, *x[j + 1 :]]), x[j]) for j in range(len(x))]


def loss_value(family: GoldenFamily, loss: str, tau: mpf, a: Vector, b: Vector) -> mpf:
    alpha, beta = family.alpha(a), family.beta(b, tau)
    posterior = add(alpha, beta)
    if loss == "evidence":
        message = family.log_partition(beta) if family.density else mpf(0)
        return family.log_partition(alpha) + message - family.log_partition(posterior)
    if loss.startswith("reverse"):
        return bregman(family.log_partition, alpha, posterior)
    return bregman(family.log_partition, posterior, alpha)


def pair_row(
    family: GoldenFamily, loss: str, tau: mpf, a: Vector, b: Vector
) -> tuple[mpf, Vector, Vector]:
    """Value, gradient to ``a`` and gradient to ``b`` of one loss at one point."""
    value = loss_value(family, loss, tau, a, b)
    if loss in ("kl", "reverse_kl"):
        held = add(family.alpha(a), family.beta(b, tau))

        def stopped(x: Vector) -> mpf:
            if loss == "kl":
                return bregman(family.log_partition, held, family.alpha(x))
            return bregman(family.log_partition, family.alpha(x), held)

        return value, gradient(stopped, a), [mpf(0)] * len(b)
    da = gradient(lambda x: loss_value(family, loss, tau, x, b), a)
    return value, da, gradient(lambda x: loss_value(family, loss, tau, a, x), b)


def float32(x: float) -> float:
    """The nearest value that float32 holds."""
    return float(struct.unpack("f", struct.pack("f", x))[0])


def vector(x: Sequence[float]) -> Vector:
    return [mpf(float32(v)) for v in x]


def scalar_points(rng: random.Random) -> list[tuple[list[float], list[float]]]:
    points = [(rng.gauss(0, 3), rng.gauss(0, 1.5)) for _ in range(24)]
    points += [(a, b) for a in (-60, -30, -12, 12, 30, 60) for b in (-60, -8, 8, 60)]
    points += [
        (a, s * b) for a in (-8, -1.5, 0, 0.3, 5) for b in (1e-2, 1e-4, 1e-6) for s in (1, -1)
    ]
    points += [(a, b) for a in (-1e-5, 0, 1e-5) for b in (-2, 0.5, 3)]
    points += [
        (a, s * b) for a, s in ((-40, 1), (-20, -1), (20, 1), (40, -1)) for b in (1e-2, 1e-6)
    ]
    points += [(2.5, 0.0), (-2.5, 0.0), (0.7, -0.7), (-30, 30)]
    return [([a], [b]) for a, b in points]


def diagonal_points(rng: random.Random) -> list[tuple[list[float], list[float]]]:
    points = [
        ((rng.gauss(0, 2), rng.uniform(-2, 2)), (rng.gauss(0, 2), rng.uniform(-2, 2)))
        for _ in range(32)
    ]
    ends = ((-60, -8), (60, 8), (0, -10), (0, 10), (3, 0))
    points += [(a, b) for a in ends for b in ends]
    points += [
        ((rng.gauss(0, 1), s), (rng.gauss(0, 1), s + gap))
        for gap in (4, 8, 12)
        for s in (-4, 0, 3, -2)
    ]
    points += [((m, -1.0), (m + gap, 0.5)) for m in (-40, 0, 2) for gap in (0, 1e-2, -1e-4, 1e-6)]
    return [(list(a), list(b)) for a, b in points]


def categorical_points(rng: random.Random) -> list[tuple[list[float], list[float]]]:
    points = []

    def draw(size: int, spread: float) -> list[float]:
        return [rng.gauss(0, spread) for _ in range(size)]

    for size, count in ((2, 3), (3, 3), (10, 2)):
        for a_spread, b_spread in (
            (2, 1),
            (2, 3),
            (4, 1e-2),
            (1, 1e-4),
            (2, 1e-6),
            (1e-5, 1),
            (15, 0.05),
        ):
            points += [(draw(size, a_spread), draw(size, b_spread)) for _ in range(count)]
        hot, cold = [60.0] + [-60.0] * (size - 1), [-60.0] * (size - 1) + [60.0]
        flat = [0.0] * size
        points += [(hot, cold), (hot, hot), (flat, hot), (cold, flat), (hot, [1e-2, *flat[1:]])]
        points += [(draw(size, 2), [7.0] * size)]
    return points


def points_of(name: str) -> list[tuple[list[float], list[float], float]]:
    rng = random.Random(f"golden {name}")
    if name == "gaussian-diagonal":
        return [(a, b, 1.0) for a, b in diagonal_points(rng)]
    if name == "categorical":
        return [(a, b, 1.0) for a, b in categorical_points(rng)]
    if name != "gaussian-precision":
        return [(a, b, 1.0) for a, b in scalar_points(rng)]
    taus = (0.25, 1.0, 4.0, 2.0**-10, 2.0**-20, 1024.0)
    return [(a, b, taus[i % len(taus)]) for i, (a, b) in enumerate(scalar_points(rng))]


def text(x: mpf | Sequence[mpf]) -> str:
    if isinstance(x, mpf):
        return "0" if abs(x) < NEGLIGIBLE else mpmath.nstr(x, DIGITS)
    return " ".join(text(v) for v in x)


def pair_table(family: GoldenFamily) -> str:
    lines = ["#loss\tparams\ta\tb\tvalue\tda\tdb"]
    for loss in LOSSES:
        for a, b, tau in points_of(family.name):
            row = pair_row(family, loss, mpf(tau), vector(a), vector(b))
            params = f"tau={tau!r}" if family.name == "gaussian-precision" else "-"
            lines.append(
                "\t".join([loss, params, text(vector(a)), text(vector(b)), *map(text, row)])
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    from generate_class import class_table

    here = Path(__file__).parent
    for member in FAMILIES:
        (here / f"{member.name}.tsv").write_text(pair_table(member))
        (here / f"class_{member.name}.tsv").write_text(class_table(member))
