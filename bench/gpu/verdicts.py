"""How stages ended, read from what their processes have filed."""

from __future__ import annotations

from typing import Any, Final

from bench.gpu.record import Record
from bench.gpu.run import NotFinished, StageFailed

#: Where a stage did not come so far as to plan.
NOTHING: Final = "nothing was reached"
#: Of the executor: ours, not peers.
MODES: Final = ("sequential", "pipelined", "graphed")


def entry_is_wrong(entry: dict[str, Any]) -> bool:
    """A kernel that failed, missed its accuracy gate, or was impossibly fast."""
    return "failure" in entry or not entry["gate"] or bool(entry["impossible"])


def executor_is_wrong(entry: dict[str, Any]) -> bool:
    """A network that failed, or a mode that did or has other bits than "sequential"."""
    if "failure" in entry or entry["gates_failed"]:
        return True
    return any(name.partition(",")[0] in MODES for name in entry["failures"])


def concluded(total: str, wrong: list[str], left: list[str]) -> str:
    """The note of a stage.

    Args:
        total: What it was about, in words.
        wrong: What it found wrong.
        left: What it did not reach.

    Raises:
        StageFailed: Something was wrong.
        NotFinished: Something was not reached.
    """
    parts = [total]
    parts += [f"{len(wrong)} wrong: {'; '.join(wrong)}"[:400]] if wrong else []
    parts += [f"{len(left)} not reached: {'; '.join(left)}"[:400]] if left else []
    note = "; ".join(parts)
    if wrong:
        raise StageFailed(note)
    if left:
        raise NotFinished(note)
    return note


def kernels(record: Record) -> str:
    """Of the stage "kernels"."""
    planned, entries = record.plans.get("kernels", []), record.entries
    done = [name for name in planned if name in entries]
    wrong = [name for name in done if entry_is_wrong(entries[name])]
    left = [name for name in planned if name not in entries]
    left += [] if planned else [NOTHING]
    return concluded(f"{len(done)} of {len(planned)} measured", wrong, left)


def executor(record: Record) -> str:
    """Of the stage "executor"; goals that are missed are told, and no failure."""
    planned, found = record.plans.get("executor", []), record.executors
    done = [name for name in planned if name in found]
    wrong = [name for name in done if executor_is_wrong(found[name])]
    left = [name for name in planned if name not in found]
    left += [] if planned else [NOTHING]
    measured = {name: found[name] for name in done if "failure" not in found[name]}
    left += [f"{n}: {peer}" for n, entry in measured.items() for peer in entry["not_reached"]]
    missed = [
        f"{name}: {goal}"
        for name, entry in measured.items()
        for goal, met in entry["goals_met"].items()
        if not met
    ]
    told = f"goals missed: {', '.join(missed) or 'none'}"
    return concluded(f"{len(done)} of {len(planned)} networks; {told}", wrong, left)
