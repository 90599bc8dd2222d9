"""Conditions and report of the benchmarks: ``pytest bench -k cpu``, ``pytest bench/test_steps.py``.

On the CPU one thread, process CPU time, pages kept. ``--bench-out DIR`` writes the results as JSON;
``--bench-quick`` runs tiny shapes without compiled peers, to see that everything works;
``--bench-device cuda`` runs the suites of kernels, steps and memory on a GPU (not yet shown).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from measure import TIMER, Call, Goal, Record, compare

from bll.bench import suites
from bll.bench.conditions import conditions
from bll.bench.measure import Bench
from bll.bench.memory import keep_pages
from bll.bench.run import SCHEMA, make_bench
from bll.bench.table import entry_lines
from bll.bench.text import seconds_text
from bll.bench.timers import CpuTimer

RECORDS: list[Record] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this suite."""
    group = parser.getgroup("bench")
    group.addoption("--bench-out", metavar="DIR", help="write the results as JSON into DIR")
    group.addoption("--bench-quick", action="store_true", help="tiny shapes, no compiled peers")
    group.addoption("--bench-device", choices=["cpu", "cuda"], default="cpu")
    group.addoption("--bench-rounds", type=int, default=9, help="samples per call (default 9)")


def pytest_configure(config: pytest.Config) -> None:
    """Fixes the timer, the threads and what becomes of freed pages."""
    torch.set_num_threads(1)
    keep_pages()
    if config.getoption("--bench-device") == "cpu":
        config.option.benchmark_timer = "time.process_time"
    config.option.benchmark_disable_gc = True
    config.option.benchmark_columns = ["median", "iqr", "rounds"]


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether only tiny shapes run."""
    return bool(request.config.getoption("--bench-quick"))


@pytest.fixture(scope="session")
def rounds(request: pytest.FixtureRequest, quick: bool) -> int:
    """Samples per call."""
    return 3 if quick else int(request.config.getoption("--bench-rounds"))


def file_record(record: Record, benchmark: Any, call: Call | None, rounds: int) -> Record:
    """Files a record in the report and beside pytest-benchmark's own figures."""
    if call is not None:
        benchmark.pedantic(call, rounds=rounds, iterations=1, warmup_rounds=1)
    benchmark.extra_info.update(record.as_dict())
    RECORDS.append(record)
    return record


@pytest.fixture(scope="session")
def bench(request: pytest.FixtureRequest, quick: bool, rounds: int) -> Bench:
    """What the entries of the shared suites have in common."""
    device = request.config.getoption("--bench-device")
    if not quick:
        return make_bench(device, rounds, None)
    # A handful of rounded numbers scatters around the error that many have on average.
    timer = CpuTimer(minimum=0.0) if device == "cpu" else None
    return make_bench(device, rounds, None, timer=timer, slack=3.0)


@pytest.fixture
def file_entry(benchmark: Any, quick: bool, rounds: int) -> Callable[..., None]:
    """Files an entry of a shared suite, and fails where it was rejected."""

    def file(entry: dict[str, Any], sample: Call) -> None:
        file_record(Record(entry), benchmark, sample, rounds)
        # Tiny shapes are not what the limits are measured for.
        if entry["rejected"] and not (quick and entry["gate"]["passed"]):
            pytest.fail(f"{entry['name']}: {entry['rejected']}")

    return file


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Makes a test of every case of a shared suite."""
    makers = {
        "kernel_case": suites.kernel_cases,
        "step_case": suites.step_cases,
        "memory_case": suites.memory_cases,
        "schedule_case": suites.schedule_cases,
    }
    for name in set(makers) & set(metafunc.fixturenames):
        option = metafunc.config.getoption
        cases = list(makers[name](option("--bench-device"), tiny=option("--bench-quick")))
        metafunc.parametrize(name, cases, ids=[case.name for case in cases])


@pytest.fixture
def report(benchmark: Any, quick: bool, rounds: int) -> Callable[..., Record]:
    """Compares one call of ours with its peers, and files the result everywhere."""

    def run(
        name: str, ours: Call, peers: Mapping[str, Call], goals: list[Goal], **counted: Any
    ) -> Record:
        record = compare(name, ours, peers, goals, rounds, **counted)
        file_record(record, benchmark, ours, rounds)
        # Tiny shapes are not what the limits are measured for.
        if record.entry["rejected"] and not quick:
            pytest.fail(f"{name}: {record.entry['rejected']}")
        return record

    return run


def _lines(record: Record) -> list[str]:
    entry = record.entry
    if entry["rejected"] or "ours" not in entry:
        return [f"{record.name}:", *entry_lines(entry)]
    speed = ""
    if entry.get("bytes_per_second"):
        rate, copy = entry["bytes_per_second"], entry["copy_bytes_per_second"]
        speed = f"  {rate / 1e9:5.1f} GB/s = {rate / copy:4.0%} of copy"
    if entry.get("matmul_flops_per_second"):
        achieved = entry["operations"]["matmul"] / entry["ours"]["seconds"]
        speed += f"  {achieved / 1e9:.0f} GFLOP/s = "
        speed += f"{achieved / entry['matmul_flops_per_second']:.0%} of matmul"
    if "fresh_seconds" in entry:
        speed += f"  fresh memory {seconds_text(entry['fresh_seconds'])}"
    head = f"{record.name}: {seconds_text(entry['ours']['seconds'])}{speed}"
    if entry["gate"]["error"] is not None:
        head += f"  gradient error {entry['gate']['error']:.1e}"
    lines = [f"{head}  {entry.get('notes', '')}".rstrip()]
    goals = {goal.peer: goal for goal in record.goals}
    for peer, facts in entry["peers"].items():
        if "missing" in facts:
            lines.append(f"    missing  {peer}: {facts['missing']}")
            continue
        line = f"    {facts['ratio']:8.3f}x [{facts['ratio_low']:.2f}, {facts['ratio_high']:.2f}]"
        line += f"  {peer} {seconds_text(facts['seconds'])}"
        if peer in goals:
            verdict = "reached" if record.reached(goals[peer]) else "MISSED"
            line += f"  (goal {goals[peer].ratio:g}x: {verdict})"
        if facts.get("error") is not None:
            line += f"  gradient error {facts['error']:.1e}"
        lines.append(line)
    return lines


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints every ratio with its goal, and writes the JSON that was asked for."""
    if not RECORDS:
        return
    terminalreporter.section("speed against peers (median ratio, quartiles of the pairs)")
    for record in RECORDS:
        for line in _lines(record):
            terminalreporter.write_line(line)
    folder = config.getoption("--bench-out")
    if folder:
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        device = config.getoption("--bench-device")
        found = {
            "schema": SCHEMA,
            "conditions": conditions(device, TIMER.name if device == "cpu" else "CUDA events"),
            "entries": [r.as_dict() for r in RECORDS],
            "left_out": [],
        }
        (target / f"{device}.json").write_text(json.dumps(found, indent=1) + "\n")
        terminalreporter.write_line(f"written: {target / f'{device}.json'}")
