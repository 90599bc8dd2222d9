"""Measures every kernel against its peers, the accuracy first."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

import bll_kernels as bk
from bench.gpu.cases import Case, Form, Inputs, cases
from bench.gpu.forms import MODES
from bench.gpu.map_cases import map_cases
from bench.gpu.record import Record, device_state
from bench.gpu.step_cases import step_cases
from bench.gpu.timing import ROUNDS, Call, CudaTimer, HostTimer, Timer
from bll.bench.limits import SLACK, Limits
from bll.bench.measure import OURS
from bll.bench.timers import Prepared, compare, host_seconds, interleave


class NotMeasured(Exception):
    """Why an entry has no figures."""


def _rotated(form: Form, sets: Sequence[Inputs]) -> list[Call]:
    return [lambda x=x: form(x) for x in sets]  # type: ignore[misc]


def _peer(timer: Timer, form: Form, sets: Sequence[Inputs]) -> Prepared | str:
    """A peer ready to be timed, or why it cannot be."""
    try:
        form(sets[0])
        return timer.prepare(_rotated(form, sets))
    # A peer that cannot run here is reported as missing, never as beaten.
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"


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
) -> dict[str, Any]:
    """One entry: error against float64 on fresh inputs, then times."""
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
        ready = _peer(timer, form, sets)
        if isinstance(ready, str):
            missing[name] = {"missing": ready}
        else:
            prepared[name] = ready
            extra[name] = _extra(timer, device, form, sets)
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
) -> str:
    """Measures what the record does not have yet, until the deadline; returns a note.

    Raises:
        NotMeasured: an entry failed, missed its accuracy gate, or was impossibly fast.
    """
    limits = Limits(timer, device)
    every = [*cases(device, tiny), *step_cases(device, tiny), *map_cases(device, tiny)]
    chosen = [case for case in every if full or case.quick]
    wrong, left = [], 0
    for case in chosen:
        for backend in backends:
            key = f"{case.name} [{backend}]"
            if key in record.entries:
                continue
            if time.monotonic() > deadline:
                left += 1
                continue
            try:
                names = DRY_PEERS if tiny else ALL_PEERS if full else QUICK_PEERS
                # Peers do not depend on the backend: measured beside the first.
                peers = names if backend == backends[0] else ()
                # A handful of rounded numbers scatters around the error of many.
                slack = 3.0 if tiny else 1.0
                entry = measure(case, backend, timer, device, peers, limits, slack)
                if not entry["gate"] or entry["impossible"]:
                    wrong.append(key)
            # A kernel that fails must not hide the others.
            except Exception as error:
                entry = {"backend": backend, "failure": f"{type(error).__name__}: {error}"[:300]}
                wrong.append(key)
            record.entry(key, entry)
            record.log(f"  {key}: {summary(entry)}")
    if wrong:
        raise NotMeasured(f"{len(wrong)} of {len(chosen)} wrong: {'; '.join(wrong)[:400]}")
    done = f"{len(chosen)} kernels on {', '.join(backends)}"
    return f"{done}; {left} left for another run" if left else done


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
    return text + ("" if entry["gate"] else "  ACCURACY GATE FAILED")
