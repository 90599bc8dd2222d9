"""Whole training steps: the rule `bll` against every other way to train a network."""

from __future__ import annotations

from collections.abc import Callable

from bll.bench.measure import Bench
from bll.bench.step_suite import step_entry
from bll.bench.steps import StepCase, rule_step


def test_step(
    step_case: StepCase, bench: Bench, quick: bool, file_entry: Callable[..., None]
) -> None:
    """Gradients against float64 first; then times in turn with the peers."""
    entry = step_entry(step_case, bench, compile_peers=not quick, quick=False)
    file_entry(entry, bench.timer.prepare([rule_step(step_case, "bll")]).sample)
