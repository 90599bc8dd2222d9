"""Two runs side by side: what became slower."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MEASURES = ("seconds", "ratio")


@dataclass(frozen=True)
class Change:
    """An entry in a base run and in one or more later ones.

    Attributes:
        name: Of the entry.
        peer: Whose ratio was compared; None for seconds.
        base: Seconds, or ratio.
        new: The same in every later run.
        slower: How many times slower it is in the best of them; below 1 it is faster.
    """

    name: str
    peer: str | None
    base: float
    new: tuple[float, ...]
    slower: float

    def is_regression(self, threshold: float) -> bool:
        """Whether it is slower by more than a share in every later run."""
        return self.slower > 1 + threshold


@dataclass(frozen=True)
class Comparison:
    """All entries of a base run against later runs.

    Attributes:
        changes: Entries that every run has, slowest change first.
        missing: Entries of the base that a later run lacks, rejected or failed ones among them.
        added: Entries that only the later runs have.
    """

    changes: tuple[Change, ...]
    missing: tuple[str, ...]
    added: tuple[str, ...]

    def regressions(self, threshold: float) -> list[Change]:
        """What became slower by more than `threshold` (0.1: ten percent) in every later run."""
        return [change for change in self.changes if change.is_regression(threshold)]


def _values(run: dict[str, Any], by: str) -> dict[tuple[str, str | None], float]:
    found: dict[tuple[str, str | None], float] = {}
    for entry in run["entries"]:
        if entry["rejected"] or "ours" not in entry:
            continue
        if by == "seconds":
            found[entry["name"], None] = entry["ours"]["seconds"]
            continue
        for peer, facts in entry["peers"].items():
            if "missing" not in facts:
                found[entry["name"], peer] = facts["ratio"]
    return found


def compare(base: dict[str, Any], later: Sequence[dict[str, Any]], by: str) -> Comparison:
    """Compares runs.

    Args:
        base: The run before.
        later: One run or more; an entry counts as slower only if it is so in each of them.
        by: "seconds" (of ours, for one quiet machine), or "ratio" (to every peer, which is what
            carries over from a busy or another machine).

    Raises:
        ValueError: `by` is not known, or the runs have no entry in common.
    """
    if by not in MEASURES:
        raise ValueError(f"by: expected one of {', '.join(MEASURES)}, got {by!r}")
    before = _values(base, by)
    after = [_values(run, by) for run in later]
    changes = []
    for key, value in before.items():
        if not all(key in values for values in after):
            continue
        new = tuple(values[key] for values in after)
        # A ratio says how much longer the peer takes: a smaller one is worse.
        slower = min(n / value for n in new) if by == "seconds" else min(value / n for n in new)
        changes.append(Change(key[0], key[1], value, new, slower))
    if not changes:
        raise ValueError("compare: the runs have no entry in common")
    missing = [key for key in before if not all(key in values for values in after)]
    added = [key for values in after for key in values if key not in before]
    return Comparison(
        tuple(sorted(changes, key=lambda change: -change.slower)),
        tuple(dict.fromkeys(map(_label, missing))),
        tuple(dict.fromkeys(map(_label, added))),
    )


def _label(key: tuple[str, str | None]) -> str:
    return key[0] if key[1] is None else f"{key[0]} against {key[1]}"


def lines(found: Comparison, threshold: float, by: str) -> list[str]:
    """The comparison for a terminal, regressions first."""
    worse = found.regressions(threshold)
    text = [
        f"{len(worse)} of {len(found.changes)} entries slower by more than {threshold:.0%} "
        f"(by {by}), {len(found.missing)} missing, {len(found.added)} new"
    ]
    for change in found.changes:
        mark = "SLOWER" if change in worse else "  "
        unit = "s" if by == "seconds" else "x"
        new = ", ".join(f"{n:.4g} {unit}" for n in change.new)
        label = _label((change.name, change.peer))
        text.append(
            f"{mark:<7}{change.slower:5.2f} times  {change.base:.4g} {unit} -> {new}  {label}"
        )
    text += [f"MISSING {name}" for name in found.missing]
    text += [f"new     {name}" for name in found.added]
    return text
