"""Measures every kernel against its peers, the accuracy first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import torch

import bll_kernels as bk
from bench.gpu.cases import Case, Form, Inputs, cases
from bench.gpu.forms import MODES
from bench.gpu.map_cases import map_cases
from bench.gpu.record import Record, device_state
from bench.gpu.run import DeviceLost, first_line, require_device
from bench.gpu.step_cases import step_cases
from bench.gpu.timing import ROUNDS, Call, CudaTimer, HostTimer, Timer
from bll.bench.limits import SLACK, Limits
from bll.bench.measure import OURS
from bll.bench.timers import Prepared, compare, host_seconds, interleave

#: Seconds that an entry may take, as long as none of its kind was measured: with peers, which are
#: compiled, in a selection and in full; without peers.
FIRST: Final = {"quick": 20.0, "full": 120.0, "alone": 5.0}


class Pace:
    """Seconds that the next entry may take, from the last few.

    Args:
        first: As long as there is none.
    """

    def __init__(self, first: float) -> None:
        self._first = first
        self._taken: list[float] = []

    def took(self, seconds: float) -> None:
        """One more was measured."""
        self._taken.append(seconds)

    def estimate(self) -> float:
        """A little more than the longest of the last three took."""
        return 1.2 * max(self._taken[-3:]) if self._taken else self._first


class Progress:
    """Tells what part of an entry is under way, and which parts ended an earlier process.

    Args:
        record: Where it is told.
        name: Of the entry.
    """

    def __init__(self, record: Record, name: str) -> None:
        self._record, self._name = record, name
        self.without = record.without.get(name, {})

    def part(self, part: str, *, optional: bool = False) -> None:
        """A part begins."""
        self._record.begin("entries", self._name, part, optional=optional)


def _rotated(form: Form, sets: Sequence[Inputs]) -> list[Call]:
    return [lambda x=x: form(x) for x in sets]  # type: ignore[misc]


def _peer(
    timer: Timer, device: str, form: Form, sets: Sequence[Inputs]
) -> tuple[Prepared, dict[str, float]] | str:
    """A peer ready to be timed and what else is known of it, or why it cannot be."""
    try:
        form(sets[0])
        prepared = timer.prepare(_rotated(form, sets))
        return prepared, _extra(timer, device, form, sets)
    # A peer that cannot run here is reported as missing, never as beaten.
    except Exception as error:
        require_device(device, error)
        return first_line(error)


def _figures(samples: Sequence[float], prepared: Prepared) -> dict[str, Any]:
    median = statistics.median(samples)
    return {
        "cold_us": 1e6 * median,
        "cold_spread": (max(samples) - min(samples)) / median,
        "cold_samples_us": [1e6 * x for x in samples],
        "timed_in": "graph" if prepared.how == "CUDA graph" else "stream",
    }


def _extra(timer: Timer, device: str, form: Form, sets: Sequence[Inputs]) -> dict[str, float]:
    """What is known of a form beside its time with a cold cache."""
    first = _rotated(form, sets)[0]
    rounds, calls = (1, 1) if isinstance(timer, HostTimer) else (ROUNDS, 20)
    hot = interleave({"hot": timer.prepare([first] * len(sets))}, rounds)["hot"]
    host = host_seconds(first, device, rounds, calls)
    return {"hot_us": 1e6 * statistics.median(hot), "host_us": 1e6 * host}


def measure(
    case: Case,
    backend: str,
    timer: Timer,
    device: str,
    peers: Sequence[str],
    limits: Limits,
    slack: float,
    progress: Progress,
) -> dict[str, Any]:
    """One entry: error against float64 on fresh inputs, then times."""
    progress.part("ours")
    copy, most = limits.copy_rate(case.moved_bytes), limits.stream_rate(case.moved_bytes)
    seed = time.time_ns() % 2**31
    generator = torch.Generator(device).manual_seed(seed)
    first = case.make(generator)
    set_bytes = sum(x.numel() * x.element_size() for x in first)
    sets = [first, *(case.make(generator) for _ in range(timer.sets(set_bytes) - 1))]
    with bk.use_backend(backend):
        error = max(case.error(x, case.ours(x)) for x in sets[:2])
        prepared = {OURS: timer.prepare(_rotated(case.ours, sets))}
        extra = {OURS: _extra(timer, device, case.ours, sets)}
    # Many shapes of one function would exhaust the compiler's cache, and then run uncompiled.
    torch._dynamo.reset()
    missing: dict[str, dict[str, Any]] = {}
    for name, form in case.peers.items():
        if name not in peers:
            continue
        if name in progress.without:
            missing[name] = {"missing": f"ended the process: {progress.without[name]}"}
            continue
        progress.part(name, optional=True)
        ready = _peer(timer, device, form, sets)
        if isinstance(ready, str):
            missing[name] = {"missing": ready}
        else:
            prepared[name], extra[name] = ready
    progress.part("times")
    # What was captured replays the backend it was captured with; what runs in its stream asks.
    with bk.use_backend(backend):
        times = interleave(prepared, 1 if isinstance(timer, HostTimer) else ROUNDS)
    figures = {
        name: {**_figures(samples, prepared[name]), **extra[name]}
        for name, samples in times.items()
    }
    ours = figures.pop(OURS)
    for name, found_figures in figures.items():
        found_figures["ratio"] = compare(times[OURS], times[name]).as_dict()
    found = {**figures, **missing}
    rate = case.moved_bytes / ours["cold_us"] * 1e6
    return {
        "backend": backend,
        "bytes": case.moved_bytes,
        "copy_gb_s": copy / 1e9,
        "seed": seed,
        "error": error,
        "gate": error <= slack * case.gate,
        "impossible": isinstance(timer, CudaTimer) and rate > SLACK * most,
        "ours": ours,
        "peers": found,
        "device_state": device_state(),
    }


QUICK_PEERS = ("eager", "compile", "distributions", "one graph", "fused", "liger")
DRY_PEERS = ("eager", "distributions", "fused", "liger")
ALL_PEERS = (*QUICK_PEERS, *(f"compile {mode}" for mode in MODES))


def run(
    record: Record,
    timer: Timer,
    device: str,
    backends: Sequence[str],
    *,
    full: bool,
    deadline: float,
    tiny: bool = False,
) -> None:
    """Files a plan, and measures what the record does not have yet until the deadline.

    An entry is not begun when it would probably not be done in time.

    Raises:
        DeviceLost: This process cannot go on; what was under way is not filed.
    """
    every = [*cases(device, tiny), *step_cases(device, tiny), *map_cases(device, tiny)]
    chosen = [case for case in every if full or case.quick]
    wanted = [(case, backend) for case in chosen for backend in backends]
    record.plan("kernels", [_key(case, backend) for case, backend in wanted])
    limits = Limits(timer, device)
    peered = Pace(FIRST["full" if full else "quick"] * (not tiny))
    alone = Pace(FIRST["alone"] * (not tiny))
    names = DRY_PEERS if tiny else ALL_PEERS if full else QUICK_PEERS
    # A handful of rounded numbers scatters around the error of many.
    slack = 3.0 if tiny else 1.0
    for case, backend in wanted:
        key = _key(case, backend)
        # Peers do not depend on the backend: measured beside the first.
        peers, pace = (names, peered) if backend == backends[0] else ((), alone)
        begun = time.monotonic()
        if key in record.entries or begun + pace.estimate() > deadline:
            continue
        progress = Progress(record, key)
        try:
            entry = measure(case, backend, timer, device, peers, limits, slack, progress)
        except DeviceLost:
            raise
        # A kernel that fails must not hide the others.
        except Exception as error:
            require_device(device, error)
            entry = {"backend": backend, "failure": first_line(error)}
        pace.took(time.monotonic() - begun)
        record.entry(key, entry)
        record.log(f"  {key}: {summary(entry)}")


def _key(case: Case, backend: str) -> str:
    return f"{case.name} [{backend}]"


def summary(entry: dict[str, Any]) -> str:
    """One line of the log."""
    if "failure" in entry:
        return f"failed: {entry['failure']}"
    ours = entry["ours"]
    rate = entry["bytes"] / ours["cold_us"] / 1e3
    text = f"{ours['cold_us']:.2f} us cold, {ours['hot_us']:.2f} hot, {ours['host_us']:.1f} host, "
    text += f"{rate:.0f} GB/s = {rate / entry['copy_gb_s']:.0%} of copy, error {entry['error']:.1e}"
    for name, peer in entry["peers"].items():
        if "missing" in peer:
            text += f", {name} missing"
        else:
            text += f", {peer['cold_us'] / ours['cold_us']:.2f}x {name}"
            text += "" if peer["timed_in"] == ours["timed_in"] else f" (in a {peer['timed_in']})"
    return text + ("" if entry["gate"] else "  ACCURACY GATE FAILED")
