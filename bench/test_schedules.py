"""The executor's wall clock against what its schedule allows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from bll.bench.measure import Bench
from bll.bench.schedule_suite import ScheduleCase, block_times, schedule_entry


def test_schedule(
    schedule_case: ScheduleCase, bench: Bench, file_entry: Callable[..., None]
) -> None:
    """No bit changes; then the measured time against the simulated one."""
    file_entry(schedule_entry(schedule_case, bench), partial(block_times, schedule_case, 1))
