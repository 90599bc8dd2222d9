"""A run as tables for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console

from bll.bench.text import (
    HOW_TO_READ,
    busy_text,
    condition_lines,
    error_text,
    limit_text,
    ratio_text,
    seconds_text,
)

_HEAD = f"{'':36}{'time':>9}  {'ours is faster by':<22}{'error':>9}"


def _row(name: str, time: str, ratio: str, error: str) -> str:
    return f"  {name:<34}{time:>9}  {ratio:<22}{error:>9}".rstrip()


def entry_lines(entry: dict[str, Any]) -> Iterator[str]:
    """An entry without its name: ours first, then every peer.

    Args:
        entry: Of a run (`bll.bench.run.run_tasks`).
    """
    if entry["rejected"]:
        yield f"  REJECTED: {entry['rejected']}"
        return
    gate = error_text(entry["gate"]["error"])
    if "ours" not in entry:
        yield from (f"  {name}: {value}" for name, value in entry.get("figures", {}).items())
        return
    yield _row("ours", seconds_text(entry["ours"]["seconds"]), limit_text(entry), gate)
    for name, peer in entry["peers"].items():
        if "missing" in peer:
            yield f"  {name:<34}  missing: {peer['missing']}"
        else:
            error = error_text(peer.get("error"))
            yield _row(name, seconds_text(peer["seconds"]), ratio_text(peer), error)


def print_tables(found: dict[str, Any], console: Console) -> None:
    """Print every entry with its peers, then how to read them, then the conditions.

    Args:
        found: A run.
        console: Where to print.
    """

    def put(line: str, style: str | None = None) -> None:
        console.print(line, style=style, soft_wrap=True, markup=False, highlight=False)

    put(_HEAD)
    for entry in found["entries"]:
        put(entry["name"], "bold")
        for line in entry_lines(entry):
            put(line, "dim" if "missing:" in line else None)
    put("")
    for line in [*HOW_TO_READ, "", *condition_lines(found["conditions"])]:
        put(line)
    busy = busy_text(found["conditions"])
    if busy:
        put(busy, "bold")
    if found["left_out"]:
        put(f"Left out, the time budget was used up: {', '.join(found['left_out'])}.")
