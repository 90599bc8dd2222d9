"""One entry of a report: accuracy first, then interleaved times, then the limits."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from bll.bench.cases import Case, Form, Inputs, Missing
from bll.bench.conditions import device_state
from bll.bench.energy_source import EnergySource
from bll.bench.limits import Limits
from bll.bench.memory import poisoned
from bll.bench.timers import Call, Prepared, Timer, compare, interleave

T = TypeVar("T")
OURS = "ours"
NOT_MEASURED = EnergySource()


class Clock:
    """Time left of a budget, and whether another compilation fits into it.

    Args:
        seconds: The budget; None for no end.
        first_compile: Seconds allowed for before any compilation was seen.
    """

    def __init__(self, seconds: float | None, first_compile: float = 30.0) -> None:
        self.end = None if seconds is None else time.monotonic() + seconds
        self.slowest_compile = first_compile
        self._seen = False

    def left(self) -> float:
        """Seconds left."""
        return float("inf") if self.end is None else self.end - time.monotonic()

    def allow(self, seconds: float) -> None:
        """Raises `Missing` where fewer seconds are left."""
        if self.left() < seconds:
            raise Missing("left out: the time budget was used up")

    def compiled(self, seconds: float) -> None:
        """Learns how long a compilation takes here; the first one also warms the compiler up."""
        self.slowest_compile = seconds if self._seen else max(seconds / 2, 5.0)
        self._seen = True


@dataclass(frozen=True)
class Bench:
    """What the entries of a run share.

    Attributes:
        timer: Of the device.
        limits: Measured limits of the device.
        device: "cpu" or "cuda".
        rounds: Samples of each form.
        clock: The time budget.
        slack: Factor on the accuracy gates, for tiny shapes whose few rounded numbers scatter.
        energy: What energy is read from, or why it is not.
    """

    timer: Timer
    limits: Limits
    device: str
    rounds: int
    clock: Clock
    slack: float = 1.0
    energy: EnergySource = NOT_MEASURED


def missing(error: Exception) -> dict[str, Any]:
    """What is filed of a peer that cannot run."""
    reason = str(error).strip().splitlines()
    text = reason[0][:200] if reason else ""
    return {"missing": text if isinstance(error, Missing) else f"{type(error).__name__}: {text}"}


def _calls(form: Form, sets: list[Inputs]) -> list[Call]:
    return [lambda x=x: form(x) for x in sets]  # type: ignore[misc]


def try_peer(bench: Bench, name: str, first_call: Callable[[], T]) -> T:
    """A peer's first call, which compiles it where it is compiled.

    Raises:
        Missing: It cannot run here, or the budget does not allow it.
    """
    compiles = name.startswith("torch.compile") or "compiled" in name
    if compiles:
        bench.clock.allow(bench.clock.slowest_compile)
    started = time.monotonic()
    values = first_call()
    if compiles:
        bench.clock.compiled(time.monotonic() - started)
    return values


def prepare_peers(
    bench: Bench, case: Case, sets: list[Inputs]
) -> tuple[dict[str, Prepared], dict[str, dict[str, Any]]]:
    """The peers that run here, ready to be timed, and what is known of each before that."""
    prepared: dict[str, Prepared] = {}
    known: dict[str, dict[str, Any]] = {}
    # Many shapes of one function would exhaust the compiler's cache, and then run uncompiled.
    torch._dynamo.reset()
    for name, form in case.peers.items():
        try:
            values = try_peer(bench, name, lambda form=form: form(sets[0]))  # type: ignore[misc]
            error = case.gradient_error(sets[0], values)
            prepared[name] = bench.timer.prepare(_calls(form, sets))
            known[name] = {"error": error}
        # A peer that cannot run here is reported as missing, never as beaten.
        except Exception as error:
            known[name] = missing(error)
    return prepared, known


def timed(samples: list[float], how: str) -> dict[str, Any]:
    """Median, spread and raw samples of one form."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return {
        "seconds": statistics.median(samples),
        "seconds_low": ordered[quarter],
        "seconds_high": ordered[-1 - quarter],
        "samples": samples,
        "timed_by": how,
    }


def file_times(
    entry: dict[str, Any],
    prepared: Mapping[str, Prepared],
    known: Mapping[str, dict[str, Any]],
    times: Mapping[str, list[float]],
) -> None:
    """Puts interleaved samples of ours and the peers, and their ratios, into an entry."""
    entry[OURS] = timed(times[OURS], prepared[OURS].how)
    entry["peers"] = {
        name: {
            **facts,
            **timed(times[name], prepared[name].how),
            **compare(times[OURS], times[name]).as_dict(),
        }
        if name in prepared
        else facts
        for name, facts in known.items()
    }


def measure(case: Case, bench: Bench, seed: int = 0) -> dict[str, Any]:
    """Measures one case.

    Args:
        case: The case.
        bench: What the entries of the run share.
        seed: Of the inputs.

    Returns:
        Plain data. ``gate`` says the error and what was allowed; an entry that misses its gate is
        not timed. ``rejected`` is the reason where the time is impossible, else None.
    """
    generator = torch.Generator(bench.device).manual_seed(seed)
    first = case.make(generator)
    set_bytes = sum(x.numel() * x.element_size() for x in first)
    sets = [first, *(case.make(generator) for _ in range(bench.timer.sets(set_bytes) - 1))]
    with poisoned():
        error = max(case.error(x, case.ours(x)) for x in sets[:2])
    allowed = case.gate * bench.slack
    entry: dict[str, Any] = {
        "name": case.name,
        "group": "kernel",
        "config": dict(case.config),
        "gate": {
            "error": error,
            "allowed": allowed,
            "passed": error <= allowed,
            "against": "float64 autograd",
        },
        "bytes": case.moved_bytes or None,
        "operations": {"matmul": case.matmul_flops, "special": case.special_functions},
        "seed": seed,
        "energy": None,
        "energy_reason": bench.energy.reason,
        "rejected": None,
    }
    if not entry["gate"]["passed"]:
        entry["rejected"] = f"error {error:.1e} is above {allowed:.1e}"
        return entry
    prepared = {OURS: bench.timer.prepare(_calls(case.ours, sets))}
    others, known = prepare_peers(bench, case, sets)
    prepared |= others
    file_times(entry, prepared, known, interleave(prepared, bench.rounds))
    if len(sets) > 1:
        hot = interleave({OURS: bench.timer.prepare(_calls(case.ours, [first] * len(sets)))}, 5)
        entry["hot_seconds"] = statistics.median(hot[OURS])
    seconds = entry[OURS]["seconds"]
    entry |= bench.limits.judge(seconds, case.moved_bytes, case.matmul_flops, case.dtype)
    entry["bytes_per_second"] = case.moved_bytes / seconds if case.moved_bytes else None
    entry |= bench.energy.fields(prepared, case.moved_bytes)
    entry["device_state"] = device_state(bench.device)
    if entry["impossible"]:
        entry["rejected"] = (
            f"{entry['of_limit']:.2f} of the measured {entry['bound_by']} limit: a mistake in the "
            "measurement"
        )
    return entry
