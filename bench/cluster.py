"""Step time, utilisation and traffic of 2 to 1,024 ranks, by simulation: table and pictures.

    python -m bench.cluster --out bench/results/ranks --pictures docs/pictures

Nothing here is measured: times of a stage are given, links are nominal.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

from bll_kernels.pipeline.cluster import (
    Conditions,
    StageTimes,
    run_cluster,
)
from bll_kernels.pipeline.failures import Failures, best_interval, useful_share
from bll_kernels.pipeline.links import ETHERNET, INFINIBAND, NVLINK

SCHEDULES = ("local", "gpipe", "1f1b", "zero-bubble")
LINKS = (NVLINK, INFINIBAND, ETHERNET)
RANKS = (2, 4, 8, 16, 64, 256, 1024)
MOST_MICRO_BATCHES = 128
#: Two equal layers per rank: 1 ms forward and as much for each gradient; 4 MB a border.
STAGE = StageTimes(1e-3, 1e-4, 1e-3, 1e-3, 2e-4, skipped=0.5)
BORDER = 4e6
#: A rank fails every three years; restarts take five minutes, a checkpoint twenty seconds.
RANK_MTBF, RESTART, CHECKPOINT = 3 * 365 * 86400.0, 300.0, 20.0


def rows() -> list[dict[str, Any]]:
    """Every schedule, link and number of ranks; up to 64 also with a slow rank and jitter."""
    found = []
    for ranks in RANKS:
        # A batch cannot grow for ever.
        count = min(4 * ranks, MOST_MICRO_BATCHES)
        for link in LINKS:
            for name, extra in (("steady", {}), ("unsteady", {"slow": {ranks // 2: 1.2}})):
                if name == "unsteady" and ranks > 64:
                    continue
                conditions = Conditions(link, BORDER, jitter=0.1 * (name != "steady"), **extra)
                for schedule in SCHEDULES:
                    estimate = run_cluster(
                        schedule,
                        [STAGE] * ranks,
                        conditions,
                        micro_batches=count,
                        batches=4 if schedule == "local" else 1,
                    )
                    found.append(
                        {
                            "ranks": ranks,
                            "micro_batches": count,
                            "link": link.name,
                            "ranks_are": name,
                            "schedule": schedule,
                            "step_ms": 1e3 * estimate.step_seconds,
                            "utilisation": estimate.utilisation,
                            "mb_per_step": estimate.bytes_per_step / 1e6,
                            "useful_share": _useful(ranks, estimate.step_seconds),
                        }
                    )
    return found


def _useful(ranks: int, step: float) -> float:
    failures = Failures(RANK_MTBF, RESTART, CHECKPOINT, 1)
    every = best_interval(failures, ranks=ranks, step_seconds=step)
    failures = Failures(RANK_MTBF, RESTART, CHECKPOINT, every)
    return useful_share(failures, ranks=ranks, step_seconds=step, steps=300 * every)


def draw(table: list[dict[str, Any]], folder: Path) -> None:
    """One picture per link: speed over 1F1B's against the number of ranks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(LINKS), figsize=(11, 3.4), sharey=True)
    for axis, link in zip(axes, LINKS, strict=True):
        for schedule in SCHEDULES:
            for name, style in (("steady", "-"), ("unsteady", ":")):
                own = [
                    row
                    for row in table
                    if (row["link"], row["schedule"], row["ranks_are"])
                    == (link.name, schedule, name)
                ]
                work = [
                    row["micro_batches"] * 1e3 * (STAGE.forward + STAGE.backward) / row["step_ms"]
                    for row in own
                ]
                axis.plot(
                    [row["ranks"] for row in own],
                    work,
                    style,
                    color=f"C{SCHEDULES.index(schedule)}",
                    label=schedule if name == "steady" else None,
                )
        axis.set_xscale("log", base=2)
        axis.set_title(link.name)
        axis.set_xlabel("ranks")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("speed (1 = backpropagation without waits)")
    axes[0].legend(fontsize=8)
    figure.tight_layout()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "ranks-simulated.png", dpi=110)


def main() -> None:
    """Write the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    options = parser.parse_args()
    table = rows()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "cluster.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: f"{v:.5g}" if isinstance(v, float) else v for k, v in row.items()} for row in table
        )
    draw(table, options.pictures)


if __name__ == "__main__":
    main()
