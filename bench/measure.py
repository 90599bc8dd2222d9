"""Goals and records of the CPU suites, on the timers and limits of `bll.bench`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bll.bench import memory
from bll.bench.conditions import device_state
from bll.bench.limits import Limits
from bll.bench.measure import OURS, file_times
from bll.bench.timers import CpuTimer, interleave

Call = Callable[[], object]
TIMER = CpuTimer()
LIMITS = Limits(TIMER, "cpu")


@dataclass(frozen=True)
class Goal:
    """A peer and how many times faster than it we mean to be."""

    peer: str
    ratio: float


@dataclass
class Record:
    """One entry of the report: plain data as `bll.bench.measure` files it, and its goals."""

    entry: dict[str, Any]
    goals: list[Goal] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the entry."""
        return str(self.entry["name"])

    def ratio(self, peer: str) -> float:
        """How many times longer a peer takes."""
        return float(self.entry["peers"][peer]["ratio"])

    def reached(self, goal: Goal) -> bool:
        """Whether the measured ratio meets the goal."""
        return self.ratio(goal.peer) >= goal.ratio

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        goals = [{"peer": g.peer, "ratio": g.ratio, "reached": self.reached(g)} for g in self.goals]
        return {**self.entry, "goals": goals}


def compare(
    name: str,
    ours: Call,
    peers: Mapping[str, Call],
    goals: list[Goal],
    rounds: int,
    *,
    moved_bytes: int = 0,
    flops: int = 0,
    errors: Mapping[str, float] | None = None,
    notes: str = "",
) -> Record:
    """Interleaved times of a call and its peers, held against what this machine can do."""
    errors = errors or {}
    prepared = {key: TIMER.prepare([call]) for key, call in {OURS: ours, **peers}.items()}
    entry: dict[str, Any] = {
        "name": name,
        "group": "step" if "step" in name else "kernel",
        "gate": {"error": errors.get(OURS), "passed": True, "against": "float64 autograd"},
        "bytes": moved_bytes or None,
        "operations": {"matmul": flops, "special": None},
        "energy": None,
        "energy_reason": "these suites do not measure energy",
        "rejected": None,
        "notes": notes,
    }
    known = {peer: {"error": errors.get(peer)} for peer in peers}
    file_times(entry, prepared, known, interleave(prepared, rounds))
    seconds = entry[OURS]["seconds"]
    entry |= LIMITS.judge(seconds, moved_bytes, flops, torch.float32)
    if entry["impossible"]:
        entry["rejected"] = f"{entry['of_limit']:.2f} of the measured {entry['bound_by']} limit"
    entry["bytes_per_second"] = moved_bytes / seconds if moved_bytes else None
    entry["fresh_seconds"] = fresh_memory(ours, rounds)
    entry["device_state"] = device_state("cpu")
    return Record(entry, [goal for goal in goals if goal.peer in peers])


def fresh_memory(call: Call, rounds: int) -> float:
    """Median seconds of a call whose outputs land on pages the kernel must hand out first."""
    once = CpuTimer(minimum=0.0).prepare([call]).sample
    times = []
    for _ in range(rounds):
        memory.drop_pages()
        times.append(once())
    return statistics.median(times)


def peak_extra_bytes(call: Call) -> int:
    """How far resident memory rises above its level during one call, from the kernel's count."""
    found = memory.peak_extra_bytes(call)
    if found is None:
        raise RuntimeError("this system does not tell the peak of resident memory")
    return found
