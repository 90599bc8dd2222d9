"""Runs `bll train` for every rule and seed of the accuracy table and writes one CSV line per run.

    python tools/accuracy.py --data-dir DIR --out bench/results/accuracy/fashion-mnist.csv
    python tools/accuracy.py --dataset digits --rules all --models mlp --width 32 --epochs 20 \
        --batch-size 50 --seeds 0 1 --out bench/results/accuracy/digits-rules.csv

Lines that the file already has are not run again, so an interrupted table can be continued. Each
run is a process of its own; its CPU time is counted beside its wall time, because wall time says
little on a machine that does other work.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from bll.rules import rule_names

RULES = (
    ("bll", ""),
    ("bp", ""),
    ("bll", "gaussian"),
    ("bll-kl", ""),
    ("bll", "bernoulli"),
    ("bp-deepsup", ""),
)
#: Options of rows that name a family: the defaults when they were first filled.
NAMED = ("pool=mean:4", "standardize=none")
EPOCHS = {"mlp": 5, "resnet10": 4}
KEY = ("dataset", "model", "rule", "asked_family", "blocks", "epochs", "seed")
OPTIONS = ("dataset", "model", "rule", "blocks", "epochs", "seed")
COLUMNS = (
    *KEY,
    "family",
    "width",
    "params",
    "params_with_feedback",
    "test_accuracy",
    "wall_seconds",
    "cpu_seconds",
    "step_ms_median",
    "peak_memory_mib",
    "batch_size",
    "lr",
    "dtype",
    "threads",
    "backend",
    "device_name",
    "load_average",
    "torch",
    "commit",
    "commit_has_changes",
)


def parse_arguments() -> argparse.Namespace:
    """The options of this script."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", action="append", default=[], help="directory of the data")
    parser.add_argument("--dataset", default="fashion-mnist")
    parser.add_argument("--models", nargs="+", default=list(EPOCHS), choices=list(EPOCHS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--rules", nargs="+", help="names, or all; default: the table's")
    parser.add_argument("--epochs", type=int, help="default: the table's for each model")
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"))
    parser.add_argument("--out", type=Path, required=True, help="the CSV file")
    return parser.parse_args()


def planned(options: argparse.Namespace) -> list[dict[str, str]]:
    """The runs, the two that are compared first."""
    named = rule_names() if options.rules == ["all"] else options.rules
    rules = RULES if named is None else tuple((name, "") for name in named)
    return [
        {
            "dataset": options.dataset,
            "model": model,
            "rule": rule,
            "asked_family": family,
            "blocks": str(options.blocks),
            "epochs": str(options.epochs or EPOCHS[model]),
            "seed": str(seed),
        }
        for (rule, family), model, seed in itertools.product(rules, options.models, options.seeds)
    ]


def train(run: dict[str, str], options: argparse.Namespace) -> dict[str, Any]:
    """Make one run in a process of its own; its line of the table."""
    name = "-".join(value for value in run.values() if value)
    out = options.runs / name
    command = [sys.executable, "-m", "bll", "train", "--overwrite", "--quiet", "--out", str(out)]
    for option in OPTIONS:
        command += [f"--{option}", run[option]]
    for option in ("width", "batch_size"):
        if getattr(options, option) is not None:
            command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
    if run["asked_family"]:
        command += ["--family", run["asked_family"]]
        for option in NAMED:
            command += ["--rule-option", option]
    for directory in options.data_dir:
        command += ["--data-dir", directory]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run(command, check=True)
    wall, after = time.monotonic() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    result = json.loads((out / "summary.json").read_text())
    copied = {name: result[name] for name in COLUMNS if name in result and name not in KEY}
    return {
        **run,
        **copied,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1
        ),
        "step_ms_median": round(result["step_ms_median"], 2),
        "peak_memory_mib": round(result["peak_memory_bytes"] / 2**20),
        "backend": result["backends"]["class_evidence_loss"],
        "load_average": round(os.getloadavg()[1], 1),
        "torch": result["versions"]["torch"],
    }


def main() -> int:
    """Make the runs that are missing."""
    options = parse_arguments()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    if options.out.exists():
        with options.out.open(newline="") as stream:
            lines = list(csv.DictReader(stream))
    done = {tuple(line[name] for name in KEY) for line in lines}
    for run in planned(options):
        if tuple(run[name] for name in KEY) in done:
            continue
        line = train(run, options)
        lines.append(line)
        print(
            f"{' '.join(v for v in run.values() if v)}: {line['test_accuracy']:.2f} %", flush=True
        )
        with options.out.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
