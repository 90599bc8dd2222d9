"""Timers, and interleaved samples: every call once a round, so that drift meets all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bll_kernels.pipeline.device import CudaDevice

Call = Callable[[], object]

#: A CPU sample repeats its call for at least this long.
CPU_SAMPLE_SECONDS = 0.005
#: A GPU sample replays its graph for at least this long.
GPU_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True)
class Prepared:
    """A computation ready to be timed.

    Attributes:
        sample: Takes one sample; returns seconds per call.
        how: What the seconds are: "process CPU time", "CUDA graph" or "CUDA stream".
        calls: How many calls a sample makes.
    """

    sample: Callable[[], float]
    how: str
    calls: int = 1


class Timer(Protocol):
    """How calls are timed on a device."""

    name: str

    def sets(self, set_bytes: int) -> int:
        """How many input sets of this size a cold measurement rotates through."""

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """Warm up the calls, one per input set, and fix how many make a sample."""


def _repeats(seconds: float, minimum: float) -> int:
    return max(1, min(1000, round(minimum / max(seconds, 1e-7))))


class CpuTimer:
    """Process CPU time, which other work on the machine disturbs little.

    Args:
        minimum: A sample repeats its calls until about this many seconds.
    """

    name = "process CPU time"

    def __init__(self, minimum: float = CPU_SAMPLE_SECONDS) -> None:
        self.minimum = minimum

    def sets(self, set_bytes: int) -> int:
        """One: the sizes of the suites decide whether the caches hold the data."""
        return 1

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """See `Timer`."""
        kept = list(calls)
        for call in kept:
            call()
        repeats = _repeats(self._measure(kept, 1), self.minimum / len(kept))
        calls_made = repeats * len(kept)
        return Prepared(lambda: self._measure(kept, repeats), self.name, calls_made)

    @staticmethod
    def _measure(calls: Sequence[Call], repeats: int) -> float:
        start = time.process_time()
        for _ in range(repeats):
            for call in calls:
                call()
        return (time.process_time() - start) / repeats / len(calls)


class CudaTimer:
    """Events around CUDA graph replays; what cannot be captured is timed in its stream.

    Not yet shown on a GPU.
    """

    name = "CUDA events around graph replays"

    def __init__(self) -> None:
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.cache_bytes = int(properties.L2_cache_size)

    def sets(self, set_bytes: int) -> int:
        """Three times the second-level cache, at least 2 and at most 16 sets."""
        return max(2, min(16, -(-3 * self.cache_bytes // max(set_bytes, 1))))

    def prepare(self, calls: Sequence[Call]) -> Prepared:
        """See `Timer`."""
        replay, captured = self._replayable(list(calls))
        self._measure(replay, 1)
        repeats = _repeats(self._measure(replay, 1), GPU_SAMPLE_SECONDS)
        count = len(calls)
        how = "CUDA graph" if captured else "CUDA stream"
        return Prepared(lambda: self._measure(replay, repeats) / count, how, repeats * count)

    @staticmethod
    def _replayable(calls: Sequence[Call]) -> tuple[Call, bool]:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for call in calls:
                call()
                call()
        torch.cuda.synchronize()

        def in_stream() -> None:
            for call in calls:
                call()

        device = CudaDevice(torch.device("cuda", torch.cuda.current_device()))
        try:
            return device.capture(in_stream), True
        except RuntimeError:
            # A call that synchronises or holds a graph of its own cannot be captured; it runs.
            torch.cuda.synchronize()
            return in_stream, False

    @staticmethod
    def _measure(replay: Call, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3 / repeats


def timer_for(device: str) -> Timer:
    """The timer of a device, "cpu" or "cuda"."""
    return CudaTimer() if device.startswith("cuda") else CpuTimer()


def host_seconds(call: Call, device: str, rounds: int = 9, calls: int = 20) -> float:
    """Median seconds of host time per call, the device's work not waited for.

    Args:
        call: What is called.
        device: That works for it.
        rounds: Samples.
        calls: Calls of a sample.
    """
    samples = []
    for _ in range(rounds):
        _synchronize(device)
        start = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - start) / calls)
    _synchronize(device)
    return statistics.median(samples)


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def interleave(prepared: Mapping[str, Prepared], rounds: int) -> dict[str, list[float]]:
    """Samples in turn, the order rotating from round to round.

    Args:
        prepared: What to time, by name.
        rounds: Samples of each.

    Returns:
        Seconds per call, one per round, by name.
    """
    order = list(prepared)
    times: dict[str, list[float]] = {name: [] for name in order}
    for turn in range(rounds):
        first = turn % len(order)
        for name in order[first:] + order[:first]:
            times[name].append(prepared[name].sample())
    return times


@dataclass(frozen=True)
class Ratio:
    """How many times longer a peer takes.

    Attributes:
        ratio: Median of the ratios of the rounds: what disturbs a round disturbs both its samples.
        low: Their lower quartile.
        high: Their upper quartile.
    """

    ratio: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"ratio": self.ratio, "ratio_low": self.low, "ratio_high": self.high}


def compare(ours: Sequence[float], peer: Sequence[float]) -> Ratio:
    """The ratio of two interleaved series of equal length."""
    paired = sorted(p / o for p, o in zip(peer, ours, strict=True))
    quarter = len(paired) // 4
    return Ratio(statistics.median(paired), paired[quarter], paired[-1 - quarter])
