"""A run: its suites one after the other, everything filed in one plain structure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch

from bll.bench.conditions import conditions
from bll.bench.energy_source import EnergySource
from bll.bench.limits import Limits
from bll.bench.measure import Bench, Clock
from bll.bench.memory import keep_pages
from bll.bench.suites import Task
from bll.bench.timers import Timer, timer_for

SCHEMA = "bll-bench/1"
QUICK_SECONDS = 60.0
QUICK_ROUNDS, ROUNDS = 7, 9
Progress = Callable[[str, dict[str, Any] | None], None]


def make_bench(
    device: str,
    rounds: int,
    seconds: float | None,
    *,
    energy: bool = False,
    timer: Timer | None = None,
    slack: float = 1.0,
) -> Bench:
    """Prepares the process for measuring: one thread on the CPU, pages kept, a timer.

    Args:
        device: "cpu" or "cuda".
        rounds: Samples of each form.
        seconds: Time budget; None for none.
        energy: Whether to measure energy where a counter is; takes minutes per entry.
        timer: Instead of the device's own.
        slack: Factor on accuracy gates.

    Raises:
        ValueError: The device is not there.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device: cuda is not there: torch sees no GPU")
    if rounds < 1:
        raise ValueError(f"rounds: expected at least 1, got {rounds}")
    if device == "cpu":
        torch.set_num_threads(1)
        keep_pages()
    chosen = timer or timer_for(device)
    source = EnergySource.of(device, energy)
    return Bench(chosen, Limits(chosen, device), device, rounds, Clock(seconds), slack, source)


def run_tasks(bench: Bench, tasks: Iterable[Task], progress: Progress) -> dict[str, Any]:
    """Measures tasks until the budget ends.

    Args:
        bench: What the entries share.
        tasks: What to measure.
        progress: Told a name before an entry, and the entry when it is done.

    Returns:
        The run as plain data: ``schema``, ``conditions``, ``entries``, and ``left_out``, the names
        of entries the budget had no time for. An entry that raised has ``failure``.
    """
    found: dict[str, Any] = {
        "schema": SCHEMA,
        "conditions": conditions(bench.device, bench.timer.name)
        | {"rounds": bench.rounds, "threads": torch.get_num_threads()},
        "entries": [],
        "left_out": [],
    }
    for task in tasks:
        if bench.clock.left() <= 0:
            found["left_out"].append(task.name)
            continue
        progress(task.name, None)
        try:
            entry = task.run(bench)
        # One entry that fails must not hide the others; the run then ends with exit code 1.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"[:300]
            entry = {"name": task.name, "failure": reason, "rejected": reason}
        found["entries"].append(entry)
        progress(task.name, entry)
    return found


def problems(found: dict[str, Any]) -> list[str]:
    """Entries that were rejected or failed, with the reason."""
    return [
        f"{entry['name']}: {entry['rejected']}" for entry in found["entries"] if entry["rejected"]
    ]
