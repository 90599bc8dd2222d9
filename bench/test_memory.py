"""Peak bytes of a training step over blocks and blocks in flight."""

from __future__ import annotations

from collections.abc import Callable

from bll.bench.measure import Bench
from bll.bench.memory_suite import memory_entry
from bll.bench.steps import StepCase, rule_step


def test_memory(memory_case: StepCase, bench: Bench, file_entry: Callable[..., None]) -> None:
    """Every form of a step, and the executor at every depth."""
    entry = memory_entry(memory_case, bench)
    assert any(row["peak_bytes"] for row in entry["memory"])
    file_entry(entry, rule_step(memory_case, "bll"))
