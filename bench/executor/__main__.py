"""Time and memory of every depth, and what of the limit is reached, on the CPU.

    python -m bench.executor --out DIR [--model mlp --blocks 4 --width 256 ...]

Writes NAME.csv, NAME.png and NAME.json (the conditions) into DIR.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.executor.measure import Depth, measure
from bll.commands.trace import TraceOptions
from bll.training import machine

COLUMNS = (
    "depth",
    "ms_per_batch",
    "ms_low_quartile",
    "ms_high_quartile",
    "limit_ms",
    "achieved_of_limit",
    "speedup_over_depth_1",
    "peak_activation_bytes",
    "law_bytes",
)


def table(found: Sequence[Depth]) -> str:
    """The measurements as CSV; achieved of limit is the simulated over the measured time."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in found:
        writer.writerow(
            [
                one.depth,
                *(f"{value:.3f}" for value in (one.milliseconds, *one.quartiles)),
                f"{one.limit_here_milliseconds:.3f}",
                f"{one.limit_here_milliseconds / one.milliseconds:.3f}",
                f"{found[0].milliseconds / one.milliseconds:.3f}",
                one.peak_bytes,
                one.law_bytes,
            ]
        )
    return text.getvalue()


def draw(found: Sequence[Depth], title: str) -> bytes:
    """PNG: memory on the left, time on the right, against the blocks in flight."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    memory, duration = figure.subplots(1, 2)
    depths = [one.depth for one in found]
    memory.plot(depths, [one.law_bytes / 1e6 for one in found], "k:", label="law (upper bound)")
    memory.plot(depths, [one.peak_bytes / 1e6 for one in found], "o-", label="measured peak")
    memory.set_ylabel("activations, MB")
    limits = [one.limit_here_milliseconds for one in found]
    duration.plot(depths, limits, "k:", label="limit (simulated)")
    middle = [one.milliseconds for one in found]
    errors = [
        [one.milliseconds - one.quartiles[0] for one in found],
        [one.quartiles[1] - one.milliseconds for one in found],
    ]
    duration.errorbar(depths, middle, yerr=errors, fmt="o-", label="measured, quartiles")
    duration.set_ylabel("time of a batch, ms")
    for panel in (memory, duration):
        panel.set_xlabel("blocks in flight")
        panel.set_xticks(depths)
        panel.set_ylim(bottom=0)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Measures, writes and prints."""
    parser = argparse.ArgumentParser(prog="python -m bench.executor", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--model", default="mlp")
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--width", type=int)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--batches", type=int, default=8, help="batches in a row")
    parser.add_argument("--rounds", type=int, default=9, help="runs of every depth, in turn")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options = TraceOptions(
        model=given.model,
        blocks=given.blocks,
        width=given.width,
        batch_size=given.batch_size,
        micro_batches=given.micro_batches,
        batches=given.batches,
    )
    processors = len(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    found = measure(options, processors=processors, rounds=given.rounds)
    commit, changes = machine.commit()
    conditions = {
        "options": dataclasses.asdict(options),
        "rounds": given.rounds,
        "processor": machine.processor_name(),
        "processors": processors,
        "load_average_before": round(load, 2),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "commit_has_changes": changes,
        "versions": machine.versions(),
    }
    name = f"{options.model}-{options.blocks}-{options.width or 'default'}-{options.batch_size}"
    title = (
        f"{options.model}, {options.blocks} blocks, width {options.width or 'default'}, batch "
        f"{options.batch_size}, {options.batches} batches in a row, 1 intra-op thread; "
        f"{machine.processor_name()}, {processors} processors, load {load:.1f}"
    )
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / f"{name}.csv").write_text(table(found))
    (given.out / f"{name}.png").write_bytes(draw(found, title))
    (given.out / f"{name}.json").write_text(json.dumps(conditions, indent=1) + "\n")
    print(title)
    print(table(found), end="")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
