"""Device time of a call: graph replays over rotated inputs, cold and hot second-level cache."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]
ROUNDS = 9
#: One sample replays its graph for at least this long.
SAMPLE_SECONDS = 0.02


class Timer(Protocol):
    """How the calls of one entry are timed."""

    def sets(self, set_bytes: int) -> int:
        """How many input sets a cold measurement rotates through."""

    def device(self, calls: Sequence[Call]) -> list[float]:
        """Seconds per call, one sample a round; the calls take turns on different inputs."""

    def host(self, call: Call) -> float:
        """Seconds of host time per call, the device's work not waited for."""


class CudaTimer:
    """Events around CUDA graph replays; what cannot be captured is timed in its stream."""

    def __init__(self) -> None:
        self.cache_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self.captured: dict[int, bool] = {}

    def sets(self, set_bytes: int) -> int:
        """Three times the second-level cache, at least 2 and at most 16 sets."""
        return max(2, min(16, -(-3 * self.cache_bytes // max(set_bytes, 1))))

    def device(self, calls: Sequence[Call]) -> list[float]:
        """See `Timer`."""
        replay, per_replay, captured = self._replayable(calls)
        self.captured[id(calls[0])] = captured
        self._measure(replay, 1)
        once = max(self._measure(replay, 1), 1e-7)
        repeats = max(1, round(SAMPLE_SECONDS / once))
        return [self._measure(replay, repeats) / repeats / per_replay for _ in range(ROUNDS)]

    def was_captured(self, calls: Sequence[Call]) -> bool:
        """Whether `device` timed these calls in a graph."""
        return self.captured[id(calls[0])]

    @staticmethod
    def _replayable(calls: Sequence[Call]) -> tuple[Call, int, bool]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
                call()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                for call in calls:
                    call()
        except RuntimeError:
            torch.cuda.synchronize()

            def in_stream() -> None:
                for call in calls:
                    call()

            return in_stream, len(calls), False
        return graph.replay, len(calls), True

    @staticmethod
    def _measure(replay: Call, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3

    def host(self, call: Call) -> float:
        """See `Timer`."""
        samples = []
        for _ in range(ROUNDS):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(20):
                call()
            samples.append((time.perf_counter() - start) / 20)
        torch.cuda.synchronize()
        return statistics.median(samples)


class HostTimer:
    """Stands in where there is no GPU, so that the driver itself can be tested: one sample."""

    def sets(self, set_bytes: int) -> int:
        """Two sets."""
        return 2

    def device(self, calls: Sequence[Call]) -> list[float]:
        """See `Timer`."""
        start = time.perf_counter()
        for call in calls:
            call()
        return [(time.perf_counter() - start) / len(calls)]

    def was_captured(self, calls: Sequence[Call]) -> bool:
        """Never."""
        return False

    def host(self, call: Call) -> float:
        """See `Timer`."""
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
