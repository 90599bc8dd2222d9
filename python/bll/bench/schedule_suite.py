"""Entries of the schedule suite: the executor's wall clock against what its schedule allows."""

from __future__ import annotations

import itertools
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import bll
from bll.bench.cases import Missing
from bll.bench.conditions import device_state
from bll.bench.limits import SLACK
from bll.bench.measure import OURS, Bench, file_times
from bll.bench.steps import CLASSES, RATE, StepCase, config
from bll.bench.timers import Prepared, interleave
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.schedule import Kind, pipelined
from bll_kernels.pipeline.simulate import BlockTimes, Timeline, simulate_workers

WALL = "wall clock"
BATCHES = 4


@dataclass(frozen=True)
class ScheduleCase:
    """A network on the executor.

    Attributes:
        step: Network and batch.
        depth: Blocks in flight.
        micro_batches: Parts of a batch.
    """

    step: StepCase
    depth: int
    micro_batches: int

    @property
    def name(self) -> str:
        """Unique among the cases."""
        network = self.step.name.replace("step ", "schedule ", 1)
        return f"{network}, {self.depth} in flight, {self.micro_batches} micro-batches"


def _executor(case: ScheduleCase, depth: int) -> Executor:
    model, cuts = case.step.network()
    x, _ = case.step.data()
    wrapped = bll.wrap(model, list(cuts), num_classes=CLASSES, example=x[:2], seed=0).train()
    try:
        return bll.executor(
            wrapped,
            partial(BlockAdam, lr=RATE),
            mode="sequential" if depth == 1 else "pipelined",
            depth=depth,
            micro_batches=case.micro_batches,
        )
    except (TypeError, ValueError) as error:
        raise Missing(f"executor: {error}") from error


def _wall(executor: Executor, batches: Sequence[tuple[Tensor, Tensor]]) -> Prepared:
    executor.run(batches)

    def sample() -> float:
        started = time.perf_counter()
        executor.run(batches)
        return (time.perf_counter() - started) / len(batches)

    return Prepared(sample, WALL, len(batches))


def block_times(case: ScheduleCase, rounds: int) -> list[BlockTimes]:
    """Median wall seconds of every block's operations on one micro-batch, run one at a time."""
    executor = _executor(case, 1)
    x, labels = case.step.data()
    size = case.step.batch // case.micro_batches
    samples: list[list[tuple[float, ...]]] = [[] for _ in executor.steps]
    for _ in range(rounds + 1):
        feature = x[:size]
        for index, step in enumerate(executor.steps):
            marks = [time.perf_counter()]
            feature, of_forward = step.forward(feature, labels[:size])
            marks.append(time.perf_counter())
            _, of_loss = step.loss(of_forward)
            marks.append(time.perf_counter())
            step.backward(of_loss)
            marks.append(time.perf_counter())
            step.update()
            marks.append(time.perf_counter())
            samples[index].append(
                tuple(after - before for before, after in itertools.pairwise(marks))
            )
    # The first round warms up.
    return [
        BlockTimes(*(statistics.median(column) for column in zip(*rows[1:], strict=True)))
        for rows in samples
    ]


def schedule_entry(case: ScheduleCase, bench: Bench) -> dict[str, Any]:
    """One network, depth and number of micro-batches, against one block at a time.

    ``of_limit`` is the simulated time of the schedule, with the times of the operations measured
    alone and as many workers as blocks in flight or processors, by the measured one.
    """
    batches = [case.step.data()] * BATCHES
    prepared = {OURS: _wall(_executor(case, case.depth), batches)}
    known: dict[str, dict[str, Any]] = {}
    if case.depth > 1:
        prepared["one block at a time"] = _wall(_executor(case, 1), batches)
        known["one block at a time"] = {"error": None}
    entry: dict[str, Any] = {
        "name": case.name,
        "group": "schedule",
        "config": {
            **config(case.step),
            "depth": case.depth,
            "micro_batches": case.micro_batches,
        },
        "gate": _same_bits(case),
        "bytes": None,
        "operations": {"matmul": None, "special": None},
        "bytes_per_second": None,
        "energy": None,
        "energy_reason": bench.energy.reason,
        "rejected": None,
    }
    if not entry["gate"]["passed"]:
        entry["rejected"] = "parameters differ from those of one block at a time"
        return entry
    file_times(entry, prepared, known, interleave(prepared, bench.rounds))
    times = block_times(case, bench.rounds)
    lanes = min(case.depth, os.cpu_count() or 1)
    whole = _simulated(case, times, lanes, BATCHES)
    limit = whole.makespan / BATCHES
    entry["simulated_seconds"] = limit
    entry["of_limit"] = limit / entry[OURS]["seconds"]
    entry["bound_by"] = "simulated schedule"
    entry["utilisation"] = whole.utilisation
    entry["timeline"] = _timeline(_simulated(case, times, lanes, 1))
    entry["device_state"] = device_state(bench.device)
    # The limit is made of times of its own, which other work on the machine makes longer.
    if entry["of_limit"] > 1.5 * SLACK:
        entry["rejected"] = f"{entry['of_limit']:.2f} of the simulated limit: the machine is busy"
    return entry


def _same_bits(case: ScheduleCase) -> dict[str, Any]:
    """Two batches on both executors: the gate of a schedule is that no bit changes."""
    results = []
    for depth in (1, case.depth):
        executor = _executor(case, depth)
        executor.run([case.step.data()] * 2)
        results.append([p.detach().clone() for b in executor.blocks for p in b.parameters()])
    same = all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    return {
        "error": 0.0 if same else float("inf"),
        "allowed": 0.0,
        "passed": same,
        "against": "one block at a time, bit for bit",
    }


def _simulated(
    case: ScheduleCase, times: Sequence[BlockTimes], lanes: int, batches: int
) -> Timeline:
    ops = pipelined(
        case.step.blocks, depth=case.depth, micro_batches=case.micro_batches, batches=batches
    )
    return simulate_workers(ops, times, workers=lanes)


def _lanes(timeline: Timeline) -> dict[tuple[int, int], int]:
    """A lane for every local step: the first that is free when the step begins."""
    begin: dict[tuple[int, int], float] = {}
    end: dict[tuple[int, int], float] = {}
    for op, start in timeline.start.items():
        step = op.block, op.micro_batch
        begin[step] = min(start, begin.get(step, start))
        end[step] = max(timeline.end[op], end.get(step, 0.0))
    free: list[float] = []
    found = {}
    for step in sorted(begin, key=lambda step: (begin[step], step)):
        lane = next((i for i, time_ in enumerate(free) if time_ <= begin[step]), len(free))
        free[lane : lane + 1] = [end[step]]
        found[step] = lane
    return found


def _timeline(timeline: Timeline) -> dict[str, Any]:
    lanes = _lanes(timeline)
    operations = [
        {
            "lane": lanes[op.block, op.micro_batch],
            "start": start,
            "end": timeline.end[op],
            "kind": Kind(op.kind).value,
            "block": op.block,
            "micro_batch": op.micro_batch,
        }
        for op, start in timeline.start.items()
    ]
    return {
        "what": "Simulated from the operations' times measured alone; one batch",
        "operations": operations,
    }
