"""Two workers against one, and against two intra-op threads, on an MLP of equal blocks (CPU).

    python -m bench.executor.workers --out DIR [--width 512 --batch-size 256 --blocks 4]

Wall-clock times of runs of some batches, in turn in one process; ratios are medians over rounds.
Writes workers-BLOCKS-WIDTH-BATCH.json, with the load average before and after: two workers need two
processors that nothing else uses.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import bll
from bench.executor.conditions import conditions
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import Executor

CLASSES = 10
OURS = "two workers"
#: Peers, and how many times faster than each two workers are meant to be.
GOALS = {"one worker": 1.6, "two intra-op threads": 1.05}


def random_batches(width: int, batch_size: int, batches: int) -> list[tuple[Tensor, Tensor]]:
    """Inputs and labels."""
    torch.manual_seed(0)
    return [
        (torch.randn(batch_size, width), torch.randint(CLASSES, (batch_size,)))
        for _ in range(batches)
    ]


def make_executor(blocks: int, width: int, example: Tensor, **options: Any) -> Executor:
    """An executor of an MLP of equal blocks of linear, batch norm and ReLU, always the same."""
    torch.manual_seed(0)
    layers = [
        nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        for _ in range(blocks)
    ]
    layers[-1].append(nn.Linear(width, CLASSES))
    model = bll.wrap(
        nn.Sequential(*layers),
        blocks=[str(index) for index in range(blocks - 1)],
        num_classes=CLASSES,
        example=example[:2],
    )
    return bll.executor(model, partial(BlockAdam, lr=1e-3), **options)


def runs(blocks: int, width: int, batch_size: int, batches: int) -> dict[str, Callable[[], object]]:
    """A run of the same batches by each way, warmed up."""
    feed = random_batches(width, batch_size, batches)
    ways: dict[str, dict[str, Any]] = {
        OURS: {"mode": "pipelined", "depth": 2, "threads": 1},
        "one worker": {"mode": "pipelined", "depth": 1, "threads": 1},
        "two intra-op threads": {"mode": "sequential", "threads": 2},
    }
    found: dict[str, Callable[[], object]] = {}
    for name, options in ways.items():
        run = make_executor(blocks, width, feed[0][0], **options)
        run.run(feed)
        found[name] = partial(run.run, feed)
    return found


def measure(ways: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every way, in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratios(seconds: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """How many times longer each peer takes: median and quartiles of the rounds, and the goal."""
    found = {}
    for name, goal in GOALS.items():
        each = [theirs / ours for theirs, ours in zip(seconds[name], seconds[OURS], strict=True)]
        low, middle, high = statistics.quantiles(each, n=4)
        found[name] = {
            "ratio": middle, "quartiles": [low, high], "goal": goal, "reached": middle >= goal,
        }  # fmt: skip
    return found


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.executor.workers", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--batches", type=int, default=16, help="batches in a row")
    parser.add_argument("--rounds", type=int, default=15, help="runs of every way, in turn")
    given = parser.parse_args(arguments)
    least = {"blocks": 2, "width": 1, "batch_size": 1, "batches": 1, "rounds": 2}
    for name, value in least.items():
        if getattr(given, name) < value:
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least {value}, got {getattr(given, name)}")
    before = os.getloadavg()[0]
    ways = runs(given.blocks, given.width, given.batch_size, given.batches)
    seconds = measure(ways, given.rounds)
    result = {
        "ratios": ratios(seconds),
        "ms_per_batch": {
            name: 1e3 * statistics.median(each) / given.batches for name, each in seconds.items()
        },
        "options": {name: value for name, value in vars(given).items() if name != "out"},
        **conditions(before),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"workers-{given.blocks}-{given.width}-{given.batch_size}.json"
    (given.out / name).write_text(json.dumps(result, indent=1) + "\n")
    for peer, line in ratios(seconds).items():
        low, high = line["quartiles"]
        print(f"{OURS}: {line['ratio']:.2f}x [{low:.2f}, {high:.2f}] {peer}, goal {line['goal']}x")
    print(f"load average {result['load_average']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
