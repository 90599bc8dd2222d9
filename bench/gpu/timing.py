"""The timers of the GPU driver: those of `bll.bench`, and one that needs no GPU to try it."""

from __future__ import annotations

import time
from collections.abc import Sequence

from bll.bench.timers import Call, CudaTimer, Prepared, Timer

__all__ = ["ROUNDS", "Call", "CudaTimer", "HostTimer", "Timer"]

ROUNDS = 9


class HostTimer:
    """Stands in where there is no GPU, so that the driver itself can be tested."""

    name = "wall clock, one call"

    def sets(self, set_bytes: int) -> int:
        """Two sets."""
        return 2

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """See `Timer`."""
        kept = list(calls)

        def sample() -> float:
            start = time.perf_counter()
            for call in kept:
                call()
            return (time.perf_counter() - start) / len(kept)

        return Prepared(sample, "stream", len(kept))
