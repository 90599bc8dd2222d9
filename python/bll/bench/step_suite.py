"""Entries of the suite of whole training steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bll.bench.conditions import device_state
from bll.bench.measure import OURS, Bench, file_times, missing, try_peer
from bll.bench.steps import (
    Step,
    StepCase,
    config,
    gate_errors,
    matmul_flops,
    peers_of,
    rule_step,
)
from bll.bench.timers import interleave

#: Largest relative L2 error of a parameter's gradient in float32, batch norm and convolutions
#: included. Where plain PyTorch in float32 is further from float64, because activations next to
#: zero fall on the other side of a ReLU, that error is the gate, with a tenth for rounding.
STEP_GATE, ROUNDING = 1e-4, 1.1


def step_entry(case: StepCase, bench: Bench, *, compile_peers: bool, quick: bool) -> dict[str, Any]:
    """One network: the rule ``bll`` against every other way to train it.

    Args:
        case: The network and batch.
        bench: What the entries of the run share.
        compile_peers: Whether compiled forms are among the peers.
        quick: Only the peers a newcomer looks for.
    """
    errors = gate_errors(case)
    allowed = max(STEP_GATE, ROUNDING * errors.plain)
    entry: dict[str, Any] = {
        "name": case.name,
        "group": "step",
        "config": config(case),
        "gate": {
            "error": errors.ours,
            "plain_float32": errors.plain,
            "allowed": allowed,
            "passed": errors.ours <= allowed,
            "against": "float64 on the reference backend",
        },
        "bytes": None,
        "operations": {"matmul": matmul_flops(case), "special": None},
        "energy": None,
        "energy_reason": bench.energy.reason,
        "rejected": None,
    }
    if not entry["gate"]["passed"]:
        entry["rejected"] = f"error {errors.ours:.1e} is above {allowed:.1e}"
        return entry
    prepared = {OURS: bench.timer.prepare([rule_step(case, "bll")])}
    known: dict[str, dict[str, Any]] = {}
    torch._dynamo.reset()
    for name, make in peers_of(case, compile_peers=compile_peers, quick=quick).items():
        try:
            prepared[name] = bench.timer.prepare([_first_step(bench, name, make)])
            known[name] = {"error": None}
        # A peer that cannot run here is reported as missing, never as beaten.
        except Exception as problem:
            known[name] = missing(problem)
    file_times(entry, prepared, known, interleave(prepared, bench.rounds))
    entry |= bench.limits.judge(
        entry[OURS]["seconds"], 0, entry["operations"]["matmul"], torch.float32
    )
    entry["bytes_per_second"] = None
    entry |= bench.energy.fields(prepared, 0)
    entry["device_state"] = device_state(bench.device)
    if entry["impossible"]:
        entry["rejected"] = f"{entry['of_limit']:.2f} of the measured matmul limit"
    return entry


def _first_step(bench: Bench, name: str, make: Callable[[], Step]) -> Step:
    step = make()
    try_peer(bench, name, step)
    return step
