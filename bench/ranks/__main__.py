"""Training over ranks side by side: blocks with local losses, pipelines of backpropagation, DDP.

    python -m bench.ranks --ranks 2 --out bench/results/ranks

Every method trains the same layers on the same batches, on the same ranks, in rounds that take
turns; a pass of its own per method reads peak memory. Writes `ranks-<n>.json` and `.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.ranks.methods import METHODS, Setting
from bench.ranks.processes import launch, memory_rank, timing_rank
from bll.bench.conditions import conditions
from bll_kernels.pipeline.cluster import Conditions, StageTimes, run_cluster
from bll_kernels.pipeline.links import Link


def summarise(setting: Setting, timing: list[Any], memory: dict[str, list[Any]]) -> list[Any]:
    """One row per method: medians over the rounds, and what the simulation says."""
    samples = setting.steps * setting.batch
    stages = [StageTimes(**rank["stage"]) for rank in timing]
    border = 4.0 * setting.width * setting.batch / setting.micro_batches
    # Sending and receiving cost both processors, beside the time that a transfer keeps its link.
    link = Link("loopback", 0.0, border / timing[0]["transfer"])
    assumed = Conditions(link, border, handling=timing[0]["handling"])
    rows = []
    for method in METHODS:
        rounds = [rank["rounds"][method] for rank in timing]
        walls = [max(one["wall"] for one in each) for each in zip(*rounds, strict=True)]
        idle = [
            statistics.median(max(0.0, 1 - one["cpu"] / one["wall"]) for one in own)
            for own in rounds
        ]
        row = {
            "method": method,
            "samples_per_s": samples / statistics.median(walls),
            "slowest_round": samples / max(walls),
            "fastest_round": samples / min(walls),
            "bytes_per_step": sum(own[-1]["bytes"] for own in rounds),
            "idle_share": idle,
            "peak_bytes": [one["peak_bytes"] for one in memory[method]],
            "simulated_samples_per_s": None,
            "of_simulated": None,
        }
        if method != "ddp":
            estimate = run_cluster(
                method, stages, assumed, micro_batches=setting.micro_batches, batches=8
            )
            row["simulated_samples_per_s"] = setting.batch / estimate.step_seconds
            row["of_simulated"] = row["samples_per_s"] / row["simulated_samples_per_s"]
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args(words))
    out = options.pop("out")
    setting = Setting(**options)
    timing = launch(timing_rank, setting)
    memory = {method: launch(memory_rank, setting, method) for method in METHODS}
    rows = summarise(setting, timing, memory)
    report = {
        "setting": asdict(setting),
        "machine": conditions("cpu", "wall clock of rounds that take turns"),
        "load": os.getloadavg(),
        "rows": rows,
        "stages": [rank["stage"] for rank in timing],
        "transfer_seconds": timing[0]["transfer"],
        "handling_seconds": timing[0]["handling"],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"ranks-{setting.ranks}.json").write_text(json.dumps(report, indent=1) + "\n")
    with (out / f"ranks-{setting.ranks}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            f"{row['method']:12s} {row['samples_per_s']:9.0f} samples/s  "
            f"{row['bytes_per_step'] / 1e6:7.2f} MB/step  idle "
            + ", ".join(f"{share:.2f}" for share in row["idle_share"])
            + "  peak "
            + ", ".join(f"{peak / 2**20:.0f}" for peak in row["peak_bytes"])
            + " MiB"
            + (f"  {row['of_simulated']:.2f} of simulated" if row["of_simulated"] else "")
        )


if __name__ == "__main__":
    main()
