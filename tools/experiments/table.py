"""A CSV file that is filled run by run; what it already holds is not run again."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bll.atomic import write_atomically
from bll.training import machine

CONDITIONS = (
    "status",
    "wall_seconds",
    "cpu_seconds",
    "load_average",
    "threads",
    "device_name",
    "torch",
    "python",
    "date",
    "commit",
    "commit_has_changes",
)


class Table:
    """The rows of an experiment in a file.

    Args:
        path: The CSV file; it need not exist.
        key: Columns that tell the runs apart.
        columns: All columns but those of `CONDITIONS`, the key first.

    Raises:
        ValueError: The file has other columns.
    """

    def __init__(self, path: Path, key: Sequence[str], columns: Sequence[str]) -> None:
        self.path = path
        self.key = tuple(key)
        self.columns = (*columns, *CONDITIONS)
        # The code that runs is the one of this moment, whatever is committed meanwhile.
        self._commit = machine.commit()
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(newline="") as stream:
                reader = csv.DictReader(stream)
                self.rows = list(reader)
            if tuple(reader.fieldnames or ()) != self.columns:
                raise ValueError(f"out: {path} has other columns than this experiment")

    def has(self, run: Mapping[str, Any]) -> bool:
        """Whether there is a row of this run."""
        wanted = [cell(run[name]) for name in self.key]
        return any([row[name] for name in self.key] == wanted for row in self.rows)

    def add(self, row: Mapping[str, Any], clock: Clock, status: str) -> None:
        """Write one more row with its conditions."""
        commit, changes = self._commit
        self.rows.append(
            {
                **{name: cell(row.get(name)) for name in self.columns},
                "status": status,
                **clock.read(),
                "load_average": round(os.getloadavg()[0], 1),
                "threads": torch.get_num_threads(),
                "device_name": machine.device_name(torch.device(str(row.get("device", "cpu")))),
                "torch": str(torch.__version__),
                "python": platform.python_version(),
                "date": time.strftime("%Y-%m-%d", time.gmtime()),
                "commit": commit or "",
                "commit_has_changes": "" if changes is None else changes,
            }
        )
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, text.getvalue().encode())


class Clock:
    """Wall and CPU seconds of this process since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.monotonic(), time.process_time()

    def read(self) -> dict[str, float]:
        """The two columns of a row."""
        return {
            "wall_seconds": round(time.monotonic() - self._wall, 1),
            "cpu_seconds": round(time.process_time() - self._cpu, 1),
        }


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table that was written.

    Raises:
        ValueError: The file is not there.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such table")
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def missing(table: Table, runs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The runs that have no row yet."""
    return [run for run in runs if not table.has(run)]


def cell(value: Any) -> str:
    """A value as it stands in the file.

    Tables are JSON, names stand with commas; nothing stands for None and for an empty table.
    """
    if isinstance(value, Mapping):
        return json.dumps(dict(value), sort_keys=True) if value else ""
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value)
