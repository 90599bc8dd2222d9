"""The measurements of the executor: every depth, with its law and its limit."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_every_depth_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.executor.__main__ import COLUMNS, main

    words = ["--blocks", "3", "--width", "8", "--batch-size", "16", "--batches", "3"]
    assert main(["--out", str(tmp_path), *words, "--rounds", "3"]) == 0
    (path,) = tmp_path.glob("*.csv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [row["depth"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert 0 < int(row["peak_activation_bytes"]) <= 1.05 * int(row["law_bytes"])
        assert float(row["ms_per_batch"]) > 0
        # Achieved and speed-up are ratios of the same row's and the first row's times.
        assert float(row["achieved_of_limit"]) == pytest.approx(
            float(row["limit_ms"]) / float(row["ms_per_batch"]), abs=0.01
        )
        assert float(row["speedup_over_depth_1"]) == pytest.approx(
            float(rows[0]["ms_per_batch"]) / float(row["ms_per_batch"]), abs=0.02
        )
    assert rows[0]["peak_activation_bytes"] == rows[0]["law_bytes"]
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    conditions = json.loads(path.with_suffix(".json").read_text())
    assert conditions["options"]["blocks"] == 3
    assert {"load_average_before", "processor", "commit", "versions"} <= set(conditions)


def test_workers_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.executor.workers import GOALS, OURS, main, ratios

    words = ["--blocks", "3", "--width", "8", "--batch-size", "16", "--batches", "3"]
    assert main(["--out", str(tmp_path), *words, "--rounds", "3"]) == 0
    result = json.loads((tmp_path / "workers-3-8-16.json").read_text())
    assert set(result["ratios"]) == set(GOALS)
    assert set(result["ms_per_batch"]) == {OURS, *GOALS}
    assert all(value > 0 for value in result["ms_per_batch"].values())
    assert len(result["load_average"]) == 2 and result["options"]["width"] == 8
    seconds = {OURS: [1.0, 2.0, 1.0], "one worker": [1.6, 3.0, 2.0]}
    seconds["two intra-op threads"] = [1.0, 2.0, 1.04]
    found = ratios(seconds)
    assert found["one worker"]["ratio"] == 1.6 and found["one worker"]["reached"]
    assert not found["two intra-op threads"]["reached"]


def test_auto_is_held_against_sequential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from bench.executor.auto import GOAL, main, measure

    words = ["--blocks", "2", "--width", "8", "--batch-size", "4", "--steps", "3"]
    assert main(["--out", str(tmp_path), *words, "--rounds", "3"]) == 0
    result = json.loads((tmp_path / "auto-2-8-4.json").read_text())
    assert set(result["us_per_step"]) == {"auto", "sequential"}
    assert result["reached"] == (result["auto_over_sequential"] <= GOAL)
    assert result["quartiles"][0] <= result["auto_over_sequential"] <= result["quartiles"][1]
    assert result["choice"].startswith(("sequential (", "pipelined ("))
    seconds, choice = measure(2, 8, 4, steps=2, rounds=2, threads=1)
    assert [len(each) for each in seconds.values()] == [2, 2]
    assert "not chosen yet" not in choice
    with pytest.raises(SystemExit):
        main(["--out", str(tmp_path), "--rounds", "1"])
