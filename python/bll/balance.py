"""Cutting a chain of units into runs of nearly equal cost."""

from __future__ import annotations

from collections.abc import Sequence


def balanced_ends(costs: Sequence[float], parts: int) -> list[int]:
    """Cut ``costs`` into ``parts`` runs so that the dearest run is as cheap as possible.

    Args:
        costs: Non-negative costs of the units, in order.
        parts: Number of non-empty runs.

    Returns:
        Index of the last unit of every run but the last, ascending; of all best cuts, the one
        whose runs end earliest.

    Raises:
        ValueError: ``parts`` is not between 1 and ``len(costs)``.
    """
    if not 1 <= parts <= len(costs):
        raise ValueError(f"parts: expected 1 to {len(costs)}, got {parts}")
    best: dict[tuple[int, int], tuple[float, list[int]]] = {}

    def solve(start: int, remaining: int) -> tuple[float, list[int]]:
        if remaining == 1:
            return sum(costs[start:]), []
        key = (start, remaining)
        if key not in best:
            candidates = []
            for end in range(start, len(costs) - remaining + 1):
                rest, ends = solve(end + 1, remaining - 1)
                candidates.append((max(sum(costs[start : end + 1]), rest), [end, *ends]))
            best[key] = min(candidates)
        return best[key]

    return solve(0, parts)[1]
