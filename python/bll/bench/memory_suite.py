"""Entries of the memory suite: peak bytes of a training step over the blocks in flight."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from bll.bench.cases import Missing
from bll.bench.conditions import device_state
from bll.bench.measure import Bench
from bll.bench.memory import peak_extra_bytes
from bll.bench.steps import (
    Step,
    StepCase,
    backprop_step,
    config,
    executor_step,
    plain_local_step,
    rule_step,
)
from bll.bench.text import bytes_text

#: Equal parts of a batch: as many for every form, so that depth is the only difference.
MICRO_BATCHES = 4


def forms(case: StepCase) -> list[tuple[str, int | None, Callable[[], Step]]]:
    """What is measured: name, blocks in flight where that is a number, and how to make it."""
    found: list[tuple[str, int | None, Callable[[], Step]]] = [
        ("backpropagation", None, partial(backprop_step, case, "eager")),
        ("backpropagation, checkpointed", None, partial(backprop_step, case, "checkpointed")),
        ("backpropagation, accumulated", None, partial(backprop_step, case, "accumulated")),
        ("rule bll, ordinary loop", None, partial(rule_step, case, "bll")),
        ("local learning in plain PyTorch", None, partial(plain_local_step, case)),
        (
            "rule bll, executor, whole batches",
            None,
            partial(executor_step, case, "bll", "sequential", None, 1),
        ),
    ]
    for depth in range(1, case.blocks + 1):
        mode = "sequential" if depth == 1 else "pipelined"
        make = partial(executor_step, case, "bll", mode, depth, MICRO_BATCHES)
        found.append((f"rule bll, executor, {MICRO_BATCHES} micro-batches", depth, make))
    return found


def memory_entry(case: StepCase, bench: Bench) -> dict[str, Any]:
    """Peak bytes of every form of one network.

    Parameters and optimiser states lie below the level that is counted from.
    """
    rows: list[dict[str, Any]] = []
    for name, depth, make in forms(case):
        row: dict[str, Any] = {"form": name, "depth": depth, "peak_bytes": None, "missing": None}
        try:
            row["peak_bytes"] = peak_extra_bytes(make(), bench.device)
            if row["peak_bytes"] is None:
                row["missing"] = "this system does not tell the peak of resident memory"
        except Missing as reason:
            row["missing"] = str(reason)
        rows.append(row)
    return {
        "name": case.name.replace("step ", "memory ", 1),
        "group": "memory",
        "config": config(case),
        "gate": {"error": None, "passed": True, "against": "the step suite checks the steps"},
        "memory": rows,
        "figures": {_label(row): _size(row) for row in rows},
        "energy": None,
        "energy_reason": "a peak has no energy",
        "rejected": None,
        "device_state": device_state(bench.device),
    }


def _label(row: dict[str, Any]) -> str:
    depth = row["depth"]
    return str(row["form"]) if depth is None else f"{row['form']}, {depth} in flight"


def _size(row: dict[str, Any]) -> str:
    if row["peak_bytes"] is None:
        return f"missing: {row['missing']}"
    return bytes_text(row["peak_bytes"])
