"""Fills the table of an accuracy experiment, or shows the tables there are.

    python -m tools.experiments rules --data-dir DIR --out bench/results/accuracy/rules.csv
    python -m tools.experiments reversal --out bench/results/accuracy/reversal.csv
    python -m tools.experiments pictures --tables bench/results/accuracy --out docs/pictures
    python -m tools.experiments page --tables bench/results/accuracy --out docs/learning.md

Rows that the table already has are not run again, so an experiment that was stopped goes on. A run
that diverges is a row as well. One run at a time, in this process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bll.data import load_dataset
from tools.experiments import images, plans, reversal
from tools.experiments.table import Clock, Table, missing

Row = Mapping[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 with a line on standard error where an input is not usable."""
    parser = argparse.ArgumentParser(prog="python -m tools.experiments", description=__doc__)
    parser.add_argument("name", choices=[*plans.NAMES, "pictures", "page"])
    parser.add_argument("--data-dir", action="append", default=[], help="folder of the data files")
    parser.add_argument(
        "--out", type=Path, required=True, help="the CSV file; of pictures a folder"
    )
    parser.add_argument("--tables", type=Path, help="folder of the CSV files, to show them")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of one operation")
    parser.add_argument("--seeds", type=int, nargs="+", help="run these alone; default: all")
    parser.add_argument("--rules", nargs="+", help="run these rules alone; default: all")
    parser.add_argument("--limit", type=int, help="stop after this many runs")
    options = parser.parse_args(arguments)
    try:
        if options.name in ("pictures", "page"):
            show(options)
        else:
            torch.set_num_threads(options.threads)
            fill(options)
    except ValueError as error:
        print(f"experiments: {error}", file=sys.stderr)
        return 2
    return 0


def show(options: argparse.Namespace) -> None:
    """Draw the pictures, or fill the tables of the page.

    Raises:
        ValueError: A table is not there.
    """
    if options.tables is None:
        raise ValueError(f"tables: {options.name} needs the folder of the CSV files")
    if options.name == "pictures":
        from tools.experiments.pictures import draw

        draw(options.tables, options.out)
        return
    from tools.experiments.page import filled

    options.out.write_text(filled(options.out.read_text(), options.tables))


def fill(options: argparse.Namespace) -> None:
    """Make the runs that have no row yet.

    Raises:
        ValueError: The table is another experiment's, or data files are not usable.
    """
    if options.name in plans.SEQUENCES:
        runs = plans.SEQUENCES[options.name]()
        table = Table(options.out, reversal.KEY, reversal.COLUMNS)
        train_one: Callable[[Row], dict[str, Any]] = reversal.train
    else:
        runs = [{**run, "threads": options.threads} for run in plans.IMAGES[options.name]()]
        table = Table(options.out, *images.layout(options.name))
        data = {name: load_dataset(name, options.data_dir) for name in {r["dataset"] for r in runs}}

        def train_one(run: Row) -> dict[str, Any]:
            return images.train(run, data[run["dataset"]])

    if options.seeds is not None:
        runs = [run for run in runs if run["seed"] in options.seeds]
    if options.rules is not None:
        runs = [run for run in runs if run["rule"] in options.rules]
    for run in missing(table, runs)[: options.limit]:
        clock = Clock()
        try:
            row, status = train_one(run), "finished"
        except (images.Diverged, reversal.Diverged) as error:
            row, status = dict(run), f"diverged: {error}"
        table.add(row, clock, status)
        print(" ".join(f"{k}={v}" for k, v in table.rows[-1].items() if v != ""), flush=True)


if __name__ == "__main__":
    sys.exit(main())
