"""Mode "auto" against "sequential" once it has chosen (CPU).

    python -m bench.executor.auto --out DIR [--width 64 --batch-size 32 --blocks 4]

Steps of one batch, in turn in one process, wall-clock; the ratio is a median over rounds. The goal
is that auto takes at most 2 % longer than sequential, whichever mode it chose.
Writes auto-BLOCKS-WIDTH-BATCH.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from bench.executor.conditions import conditions
from bench.executor.workers import make_executor, random_batches
from bll_kernels.pipeline.executor import Executor

MODES = ("auto", "sequential")
#: How many times longer than sequential auto may take.
GOAL = 1.02


def measure(
    blocks: int, width: int, batch_size: int, steps: int, rounds: int, threads: int
) -> tuple[dict[str, list[float]], str]:
    """Seconds of a step of each mode, round by round, and what auto chose.

    Args:
        blocks: Of the MLP.
        width: Of its layers.
        batch_size: Samples of a step.
        steps: Of one sample of the clock.
        rounds: Samples of each mode, in turn.
        threads: Intra-op threads of a block.
    """
    feed = random_batches(width, batch_size, steps)
    executors = {
        mode: make_executor(blocks, width, feed[0][0], mode=mode, threads=threads) for mode in MODES
    }
    choice = executors["auto"].choice
    if choice is None:
        raise RuntimeError("auto: the executor has nothing to choose")
    while choice.chosen is None:
        executors["auto"].step(*feed[0])
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for number in range(rounds + 1):
        # Whoever goes second finds the caches warm: they take turns.
        for mode in MODES[:: 1 if number % 2 else -1]:
            found = _seconds(executors[mode], feed)
            if number:
                seconds[mode].append(found)
    return seconds, str(choice)


def _seconds(executor: Executor, feed: list[Any]) -> float:
    start = time.perf_counter()
    for x, labels in feed:
        executor.step(x, labels)
    return (time.perf_counter() - start) / len(feed)


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.executor.auto", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="steps of a sample")
    parser.add_argument("--rounds", type=int, default=40, help="samples of each mode, in turn")
    parser.add_argument("--threads", type=int, default=1, help="intra-op threads of a block")
    given = parser.parse_args(arguments)
    least = {"blocks": 2, "width": 1, "batch_size": 2, "steps": 1, "rounds": 2, "threads": 1}
    for name, value in least.items():
        if getattr(given, name) < value:
            option = name.replace("_", "-")
            parser.error(f"--{option}: expected at least {value}, got {getattr(given, name)}")
    options = {name: value for name, value in vars(given).items() if name != "out"}
    before = os.getloadavg()[0]
    seconds, choice = measure(**options)
    each = [a / b for a, b in zip(seconds["auto"], seconds["sequential"], strict=True)]
    low, middle, high = statistics.quantiles(each, n=4)
    result = {
        "auto_over_sequential": middle,
        "quartiles": [low, high],
        "goal": GOAL,
        "reached": middle <= GOAL,
        "choice": choice,
        "us_per_step": {mode: 1e6 * statistics.median(found) for mode, found in seconds.items()},
        "options": options,
        **conditions(before),
    }
    given.out.mkdir(parents=True, exist_ok=True)
    name = f"auto-{given.blocks}-{given.width}-{given.batch_size}.json"
    (given.out / name).write_text(json.dumps(result, indent=1) + "\n")
    print(f"auto takes {middle:.3f} of sequential [{low:.3f}, {high:.3f}], goal {GOAL}: {choice}")
    print(f"load average {result['load_average']}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
