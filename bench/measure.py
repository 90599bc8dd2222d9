"""Interleaved timing in one process, measured limits, and what a run happened on."""

from __future__ import annotations

import ctypes
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

import bll_kernels

Call = Callable[[], object]

#: glibc keeps freed pages, so that page faults of fresh outputs do not hide the kernels.
MALLOC_SETTINGS = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "268435456",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
}


@dataclass(frozen=True)
class Goal:
    """A peer and how many times faster than it we mean to be."""

    peer: str
    ratio: float


@dataclass
class Record:
    """One entry of the report; times are medians in seconds of process CPU time."""

    name: str
    ours: float
    peers: dict[str, float]
    ratios: dict[str, float]
    spread: dict[str, tuple[float, float]]
    goals: list[Goal]
    moved_bytes: int = 0
    copy_rate: float = 0.0
    flops: int = 0
    matmul_rate: float = 0.0
    fresh: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    notes: str = ""

    def reached(self, goal: Goal) -> bool:
        """Whether the measured ratio meets the goal."""
        return self.ratios[goal.peer] >= goal.ratio

    @property
    def rate(self) -> float:
        """Achieved bytes per second, 0 where no bytes are counted."""
        return self.moved_bytes / self.ours

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = asdict(self)
        plain["goals"] = [{**asdict(g), "reached": self.reached(g)} for g in self.goals]
        plain["bytes_per_second"] = self.rate
        plain["flops_per_second"] = self.flops / self.ours
        return plain


def _sample(call: Call, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        call()
    return (time.process_time() - start) / repeats


def _repeats(call: Call, minimum: float) -> int:
    call()
    return max(1, min(1000, round(minimum / max(_sample(call, 1), 1e-6))))


def interleave(
    calls: Mapping[str, Call], rounds: int, minimum: float = 0.005
) -> dict[str, list[float]]:
    """Times every call once a round, the order turning, so that drift meets all alike.

    Args:
        calls: What to time, by name.
        rounds: Samples per call.
        minimum: A sample repeats its call until about this many seconds.

    Returns:
        Seconds of process CPU time per call, one per round.
    """
    repeats = {name: _repeats(call, minimum) for name, call in calls.items()}
    order = list(calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in order[turn % len(order) :] + order[: turn % len(order)]:
            times[name].append(_sample(calls[name], repeats[name]))
    return times


def compare(
    name: str, ours: Call, peers: Mapping[str, Call], goals: list[Goal], rounds: int
) -> Record:
    """Ratios of interleaved medians, with the quartiles of the paired ratios."""
    times = interleave({"ours": ours, **peers}, rounds)
    median = {key: statistics.median(values) for key, values in times.items()}
    spread = {}
    for peer in peers:
        paired = sorted(p / o for p, o in zip(times[peer], times["ours"], strict=True))
        spread[peer] = (paired[len(paired) // 4], paired[-1 - len(paired) // 4])
    mine = median.pop("ours")
    ratios = {peer: value / mine for peer, value in median.items()}
    return Record(name, mine, median, ratios, spread, goals)


def fresh_memory(call: Call, rounds: int) -> float:
    """Median seconds of a call whose outputs land on pages the kernel must hand out first."""
    libc = ctypes.CDLL("libc.so.6")
    times = []
    for _ in range(rounds):
        libc.malloc_trim(0)
        times.append(_sample(call, 1))
    return statistics.median(times)


@cache
def matmul_rate(size: int = 1024, rounds: int = 9) -> float:
    """Measured float32 operations per second of a square matrix product, one thread."""
    left, right, out = (torch.randn(size, size) for _ in range(3))
    times = interleave({"mm": lambda: torch.mm(left, right, out=out)}, rounds)["mm"]
    return 2 * size**3 / statistics.median(times)


@cache
def copy_rate(nbytes: int, rounds: int = 9) -> float:
    """Measured bytes per second of a copy that moves ``nbytes`` (read and written), one thread."""
    source = torch.randn(max(nbytes // 8, 1))
    target = torch.empty_like(source)
    times = interleave({"copy": lambda: target.copy_(source)}, rounds)["copy"]
    return 8 * source.numel() / statistics.median(times)


def peak_extra_bytes(call: Call) -> int:
    """How far resident memory rises above its level during one call, from the kernel's count."""
    call()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return peak - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def _output(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def environment() -> dict[str, Any]:
    """The conditions every number of a run depends on."""
    models = [
        line.split(":", 1)[1].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    here = Path(__file__).parent
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _output("git", "-C", str(here), "rev-parse", "--short", "HEAD"),
        "uncommitted_changes": bool(
            _output("git", "-C", str(here), "status", "--porcelain", "--untracked-files=no")
        ),
        "processor": models[0] if models else platform.processor(),
        "logical_processors": os.cpu_count(),
        "load_average_at_start": os.getloadavg()[0],
        "threads": torch.get_num_threads(),
        "timer": "process CPU time",
        "malloc": {key: os.environ.get(key, "default") for key in MALLOC_SETTINGS},
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "bll_kernels": bll_kernels.__version__,
        "backends": bll_kernels.available(),
    }
