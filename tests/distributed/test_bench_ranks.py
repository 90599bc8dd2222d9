"""The comparison over ranks runs, and its rows agree with each other."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_every_method_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'python'}")  # of the ranks
    from bench.ranks.__main__ import main
    from bench.ranks.methods import METHODS

    words = ["--width", "8", "--batch", "16", "--micro-batches", "2", "--steps", "2"]
    main(["--out", str(tmp_path), "--rounds", "2", *words])
    with (tmp_path / "ranks-2.csv").open(newline="") as stream:
        rows = {row["method"]: row for row in csv.DictReader(stream)}
    assert tuple(rows) == METHODS
    for row in rows.values():
        assert 0 < float(row["slowest_round"]) <= float(row["samples_per_s"])
        assert float(row["samples_per_s"]) <= float(row["fastest_round"])
    # An output is 16 x 8 floats; backpropagation sends as much back.
    assert float(rows["local"]["bytes_per_step"]) == 16 * 8 * 4
    assert float(rows["1f1b"]["bytes_per_step"]) == 2 * 16 * 8 * 4
    report = json.loads((tmp_path / "ranks-2.json").read_text())
    assert report["transfer_seconds"] > 0 and report["handling_seconds"] > 0
    assert len(report["stages"]) == 2
    assert {"commit", "versions"} <= set(report["machine"])


@pytest.mark.slow
def test_it_starts_as_a_command(tmp_path: Path) -> None:
    """A fresh process finds what it is to run, which it would not in the command's own module."""
    words = [
        "--width",
        "4",
        "--batch",
        "8",
        "--micro-batches",
        "2",
        "--steps",
        "1",
        "--rounds",
        "1",
    ]
    subprocess.run(
        [sys.executable, "-m", "bench.ranks", "--out", str(tmp_path), *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'python'}"},
        check=True,
        timeout=300,
    )
    assert (tmp_path / "ranks-2.csv").is_file()
