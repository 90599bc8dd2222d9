"""What failures of ranks cost a run with checkpoints: simulation, and Young and Daly's formula."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Failures:
    """How often ranks fail and what it takes to go on. All times in seconds.

    Attributes:
        rank_mtbf: Mean time between failures of one rank.
        restart: From a failure until the ranks compute again.
        checkpoint: Writing one checkpoint, during which nothing is computed.
        every: Steps between checkpoints.
    """

    rank_mtbf: float
    restart: float
    checkpoint: float
    every: int

    def __post_init__(self) -> None:
        if not self.rank_mtbf > 0 or min(self.restart, self.checkpoint) < 0 or self.every < 1:
            raise ValueError(f"failures: expected positive times and every >= 1, got {self}")


def useful_share(
    failures: Failures, *, ranks: int, step_seconds: float, steps: int, seed: int = 0
) -> float:
    """Share of a run's time that goes into steps that are kept, by simulation.

    A failure of any rank ends all of them; they go on from the last checkpoint. Failures come at
    random with a constant rate, during restarts too.

    Args:
        failures: Rates and costs.
        ranks: Number of ranks.
        step_seconds: One step without failures.
        steps: Steps of the run.
        seed: Of the moments of failures.
    """
    moments = random.Random(seed)
    rate = ranks / failures.rank_mtbf
    now, kept = 0.0, 0
    failing = moments.expovariate(rate)
    while kept < steps:
        part = min(failures.every, steps - kept)
        needed = part * step_seconds + failures.checkpoint
        if now + needed <= failing:
            now += needed
            kept += part
            continue
        now = failing
        failing = now + moments.expovariate(rate)
        while failing < now + failures.restart:
            now = failing
            failing = now + moments.expovariate(rate)
        now += failures.restart
    return steps * step_seconds / now


def best_interval(failures: Failures, *, ranks: int, step_seconds: float) -> int:
    """Steps between checkpoints that lose least: sqrt(2 * checkpoint * MTBF) (Young 1974)."""
    seconds = math.sqrt(2.0 * failures.checkpoint * failures.rank_mtbf / ranks)
    return max(1, round(seconds / step_seconds))
