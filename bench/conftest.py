"""Conditions and report of the benchmarks: ``pytest bench -k cpu``.

One thread, process CPU time. glibc reads its malloc settings when a process starts, so a run
without them restarts itself once with them set. ``--bench-out DIR`` writes the results as JSON;
``--bench-quick`` runs tiny shapes without compiled peers, to see that everything works.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from measure import (
    MALLOC_SETTINGS,
    Call,
    Goal,
    Record,
    compare,
    copy_rate,
    environment,
    fresh_memory,
    matmul_rate,
)

RECORDS: list[Record] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options of this suite."""
    group = parser.getgroup("bench")
    group.addoption("--bench-out", metavar="DIR", help="write the results as JSON into DIR")
    group.addoption("--bench-quick", action="store_true", help="tiny shapes, no compiled peers")
    group.addoption("--bench-rounds", type=int, default=9, help="samples per call (default 9)")


def pytest_configure(config: pytest.Config) -> None:
    """Restarts with the malloc settings, then fixes the timer and the threads."""
    settings = {**MALLOC_SETTINGS, "OMP_NUM_THREADS": "1"}
    if any(os.environ.get(key) != value for key, value in settings.items()):
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is not None:
            capture.suspend_global_capture(in_=True)
        arguments = [sys.executable, "-m", "pytest", *config.invocation_params.args]
        os.chdir(config.invocation_params.dir)
        os.execve(sys.executable, arguments, {**os.environ, **settings})
    torch.set_num_threads(1)
    config.option.benchmark_timer = "time.process_time"
    config.option.benchmark_disable_gc = True
    config.option.benchmark_columns = ["median", "iqr", "rounds"]


@pytest.fixture(scope="session")
def quick(request: pytest.FixtureRequest) -> bool:
    """Whether only tiny shapes run."""
    return bool(request.config.getoption("--bench-quick"))


@pytest.fixture
def report(request: pytest.FixtureRequest, benchmark: Any, quick: bool) -> Callable[..., Record]:
    """Compares one call of ours with its peers, and files the result everywhere."""
    rounds = 3 if quick else request.config.getoption("--bench-rounds")

    def run(
        name: str,
        ours: Call,
        peers: Mapping[str, Call],
        goals: list[Goal],
        *,
        moved_bytes: int = 0,
        flops: int = 0,
        errors: dict[str, float] | None = None,
        notes: str = "",
    ) -> Record:
        record = compare(name, ours, peers, [g for g in goals if g.peer in peers], rounds)
        record.moved_bytes, record.errors, record.notes = moved_bytes, errors or {}, notes
        record.flops = flops
        record.fresh = fresh_memory(ours, rounds)
        if moved_bytes:
            record.copy_rate = copy_rate(moved_bytes)
        if flops:
            record.matmul_rate = matmul_rate()
        benchmark.pedantic(ours, rounds=rounds, iterations=1, warmup_rounds=1)
        benchmark.extra_info.update(record.as_dict())
        RECORDS.append(record)
        return record

    return run


def _lines(record: Record) -> list[str]:
    speed = ""
    if record.moved_bytes:
        speed = f"  {record.rate / 1e9:5.1f} GB/s = {record.rate / record.copy_rate:4.0%} of copy"
    if record.flops:
        achieved = record.flops / record.ours
        speed += f"  {achieved / 1e9:.0f} GFLOP/s = {achieved / record.matmul_rate:.0%} of matmul"
    fresh = f"  fresh memory {1e3 * record.fresh:.3g} ms"
    lines = [f"{record.name}: {1e3 * record.ours:.3g} ms{speed}{fresh}  {record.notes}".rstrip()]
    goals = {goal.peer: goal for goal in record.goals}
    for peer, ratio in record.ratios.items():
        low, high = record.spread[peer]
        line = f"    {ratio:8.3f}x [{low:.2f}, {high:.2f}]  {peer}"
        line += f" {1e3 * record.peers[peer]:.3g} ms"
        if peer in goals:
            verdict = "reached" if record.reached(goals[peer]) else "MISSED"
            line += f"  (goal {goals[peer].ratio:g}x: {verdict})"
        if peer in record.errors:
            line += f"  gradient error {record.errors[peer]:.1e}"
        lines.append(line)
    if "ours" in record.errors:
        lines[0] += f"  gradient error {record.errors['ours']:.1e}"
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
        found = {"environment": environment(), "entries": [r.as_dict() for r in RECORDS]}
        (target / "cpu.json").write_text(json.dumps(found, indent=1) + "\n")
        terminalreporter.write_line(f"written: {target / 'cpu.json'}")
