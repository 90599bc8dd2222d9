"""Reads measurements in every form this project has written them, into one form.

The one form is that of `bll.bench.run.run_tasks`. Other forms are those of the CPU suites until
November 2026 (``environment`` beside ``entries``), of ``make gpu``, of pytest-benchmark, of a
training run's ``summary.json``, and of the accuracy table (CSV).
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bll.bench.run import SCHEMA

#: Columns without which a CSV is not the accuracy table.
ACCURACY_COLUMNS = {"dataset", "model", "rule", "family", "seed", "test_accuracy"}


@dataclass
class Measurements:
    """What was found in a set of files.

    Attributes:
        runs: Benchmark runs, each with ``source``, ``conditions`` and ``entries``.
        trainings: Summaries of training runs, each with ``source``.
        accuracy: Rows of accuracy tables, each with ``source``.
        other: Files below the folders that are no measurement of these kinds.
    """

    runs: list[dict[str, Any]] = field(default_factory=list)
    trainings: list[dict[str, Any]] = field(default_factory=list)
    accuracy: list[dict[str, str]] = field(default_factory=list)
    other: list[Path] = field(default_factory=list)


class UnknownForm(ValueError):
    """A file is in no form the report knows."""


def files_below(paths: Sequence[Path]) -> list[Path]:
    """The JSON and CSV files named or below the folders named, sorted within each.

    Raises:
        ValueError: A path does not exist, or a folder holds no such file.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_file():
            found.append(path)
            continue
        if not path.is_dir():
            raise ValueError(f"path: {path} does not exist")
        below = sorted(p for p in path.rglob("*") if p.suffix in (".json", ".csv") and p.is_file())
        # A run's own folder holds files of other kinds; only its summary is a measurement.
        below = [
            p for p in below if not (p.parent / "summary.json").exists() or p.name == "summary.json"
        ]
        below = [p for p in below if p.parent.name != "checkpoint"]
        if not below:
            raise ValueError(f"path: {path} holds no .json or .csv file")
        found += below
    return found


def read(paths: Sequence[Path]) -> Measurements:
    """Reads files and folders.

    Raises:
        ValueError: A file cannot be read, or one that is named is in no known form.
    """
    found = Measurements()
    for path in files_below(paths):
        try:
            _take(found, path)
        except UnknownForm:
            if path in paths:
                raise
            found.other.append(path)
    return found


def _take(found: Measurements, path: Path) -> None:
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"path: {path} cannot be read: {error}") from error
    if path.suffix == ".csv":
        found.accuracy += _accuracy(path, text)
        return
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"path: {path} is not JSON: {error}") from error
    try:
        _sort(found, path, data)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"path: {path} lacks what its form needs: {error!r}") from error


def read_run(path: Path) -> dict[str, Any]:
    """Reads one benchmark run.

    Raises:
        ValueError: The file holds none.
    """
    runs = read([path]).runs
    if len(runs) != 1:
        raise ValueError(f"path: expected one benchmark run in {path}, found {len(runs)}")
    return runs[0]


def _accuracy(path: Path, text: str) -> list[dict[str, str]]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows or not set(rows[0]) >= ACCURACY_COLUMNS:
        raise UnknownForm(f"path: {path} is not an accuracy table")
    return [{**row, "source": path.name} for row in rows]


def _sort(found: Measurements, path: Path, data: Any) -> None:
    if not isinstance(data, dict):
        raise UnknownForm(f"path: {path} is in no known form: expected an object")
    if data.get("schema") == SCHEMA:
        run = data
    elif "environment" in data and "entries" in data:
        run = _early_cpu(data)
    elif "stages" in data and "entries" in data:
        run = _gpu(data)
    elif "benchmarks" in data and "machine_info" in data:
        run = _pytest_benchmark(data)
    elif "history" in data and "test_accuracy" in data:
        found.trainings.append({**data, "source": path.parent.name or path.name})
        return
    else:
        raise UnknownForm(f"path: {path} is in no known form")
    found.runs.append({"left_out": [], **run, "source": path.name})


def _pytest_benchmark(data: dict[str, Any]) -> dict[str, Any]:
    entries = [b["extra_info"] for b in data["benchmarks"] if "gate" in b["extra_info"]]
    info = data["machine_info"]
    return {
        "conditions": {
            "device": "cpu",
            "device_name": info.get("cpu", {}).get("brand_raw") or info.get("machine"),
            "date": data.get("datetime"),
            "commit": data.get("commit_info", {}).get("id"),
            "uncommitted_changes": data.get("commit_info", {}).get("dirty"),
            "versions": {"python": info.get("python_version")},
            "timer": "pytest-benchmark",
        },
        "entries": entries,
    }


def _peer(seconds: float, ours: float, **more: Any) -> dict[str, Any]:
    ratio = seconds / ours
    return {"seconds": seconds, "ratio": ratio, "ratio_low": ratio, "ratio_high": ratio, **more}


def _early_cpu(data: dict[str, Any]) -> dict[str, Any]:
    now = data["environment"]
    entries = []
    for old in data["entries"]:
        errors = old["errors"]
        peers = {
            name: {
                **_peer(seconds, old["ours"], error=errors.get(name)),
                "ratio": old["ratios"][name],
                "ratio_low": old["spread"][name][0],
                "ratio_high": old["spread"][name][1],
            }
            for name, seconds in old["peers"].items()
        }
        floors = {}
        if old["moved_bytes"]:
            floors["copy"] = old["moved_bytes"] / old["copy_rate"]
        if old["flops"]:
            floors["matmul"] = old["flops"] / old["matmul_rate"]
        bound = max(floors, key=lambda name: floors[name]) if floors else None
        entries.append(
            {
                "name": old["name"],
                "group": "step" if " step" in old["name"] else "kernel",
                "gate": {"error": errors.get("ours"), "passed": True},
                "ours": {"seconds": old["ours"], "timed_by": now["timer"]},
                "peers": peers,
                "bytes": old["moved_bytes"] or None,
                "operations": {"matmul": old["flops"], "special": None},
                "bytes_per_second": old["bytes_per_second"] or None,
                "copy_bytes_per_second": old["copy_rate"] or None,
                "matmul_flops_per_second": old["matmul_rate"] or None,
                "bound_by": bound,
                "of_limit": floors[bound] / old["ours"] if bound else None,
                "energy": None,
                "energy_reason": "not measured in this file",
                "rejected": None,
            }
        )
    conditions = {
        "date": now["date"],
        "commit": now["commit"],
        "uncommitted_changes": now["uncommitted_changes"],
        "device": "cpu",
        "device_name": now["processor"],
        "logical_processors": now["logical_processors"],
        "threads": now["threads"],
        "timer": now["timer"],
        "malloc": "freed pages are kept",
        "versions": {
            "bll-kernels": now["bll_kernels"],
            "torch": now["torch"],
            "python": now["python"],
        },
        "backends": now["backends"],
        "device_state_at_start": {"load_average": now["load_average_at_start"]},
    }
    return {"conditions": conditions, "entries": entries}


def _gpu(data: dict[str, Any]) -> dict[str, Any]:
    now = data["conditions"]
    entries = []
    for name, old in data["entries"].items():
        if "failure" in old:
            entries.append({"name": name, "group": "kernel", "rejected": old["failure"]})
            continue
        ours, copy = old["ours"]["cold_us"] / 1e6, old["copy_gb_s"] * 1e9
        samples = [x / 1e6 for x in old["ours"].get("cold_samples_us", [])]
        peers = {}
        for peer, found in old["peers"].items():
            ratios = found.get("ratio", {})
            peers[peer] = (
                found
                if "missing" in found
                else {**_peer(found["cold_us"] / 1e6, ours, error=None), **ratios}
            )
        wrong = "impossibly fast" if old["impossible"] else None
        entries.append(
            {
                "name": name,
                "group": "kernel",
                "gate": {"error": old["error"], "passed": old["gate"]},
                "ours": {"seconds": ours, "samples": samples, "timed_by": old["ours"]["timed_in"]},
                "hot_seconds": old["ours"]["hot_us"] / 1e6,
                "peers": peers,
                "bytes": old["bytes"],
                "operations": {"matmul": None, "special": None},
                "bytes_per_second": old["bytes"] / ours,
                "copy_bytes_per_second": copy,
                "matmul_flops_per_second": None,
                "bound_by": "copy",
                "of_limit": old["bytes"] / copy / ours,
                "energy": None,
                "energy_reason": "not measured in this file",
                "rejected": wrong if old["gate"] else f"error {old['error']:.1e}",
            }
        )
    versions = {key: now.get(key) for key in ("torch", "python", "cuda")}
    conditions = {
        **now,
        "device": "cpu" if now["device"] == "cpu" else "cuda",
        "device_name": now["device"],
        "timer": "CUDA events around graph replays",
        "versions": {**versions, "bll-kernels": now.get("bll_kernels")},
        "device_state_at_start": now.get("device_state"),
    }
    return {"conditions": conditions, "entries": entries}
