"""The benchmarks run, gate their accuracy and write their report; and the traffic formulas."""

from __future__ import annotations

import importlib.util
import itertools
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytest.importorskip("pytest_benchmark")


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"bench_{name}", ROOT / "bench" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_bytes_are_the_passes_over_memory() -> None:
    traffic = load("traffic")
    assert traffic.pair_bytes(10, 4, grad_b=False) == 3 * 40
    assert traffic.pair_bytes(10, 4, grad_b=True) == 4 * 40
    assert traffic.pair_bytes(10, 2, grad_b=True, table=True) == 2 * 20
    assert traffic.next_units(2, 2) == 1
    assert traffic.next_units(1, 4) == 0.25
    assert traffic.copy_bytes(10, 2) == 40
    assert traffic.pooled_class_bytes(10, 4) == 80
    assert traffic.linear_class_flops(2, 3, 5) == 180


@pytest.mark.slow
def test_shared_suites_run_at_tiny_sizes(tmp_path: Path) -> None:
    suites = ["kernels", "steps", "memory", "schedules"]
    command = [sys.executable, "-m", "pytest", "-q", "--bench-quick", "--bench-out", str(tmp_path)]
    command += [f"bench/test_{name}.py" for name in suites]
    command += ["-p", "no:xdist"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    entries = json.loads((tmp_path / "cpu.json").read_text())["entries"]
    assert {entry["group"] for entry in entries} == {"kernel", "step", "memory", "schedule"}
    assert all(entry["gate"]["passed"] for entry in entries)
    functions = {entry["config"].get("function") for entry in entries}
    assert functions >= {"posterior_kl", "evidence_loss", "class_evidence_loss", "gram_loss"}
    step = next(entry for entry in entries if entry["group"] == "step")
    for peer in ("backpropagation, checkpointed", "executor sequential", "rule bll-kl"):
        assert step["peers"][peer]["ratio"] > 0
    schedule = next(entry for entry in entries if entry["group"] == "schedule")
    assert schedule["simulated_seconds"] > 0
    operations = schedule["timeline"]["operations"]
    assert {op["lane"] for op in operations} == {0, 1}
    for lane in (0, 1):
        times = sorted((op["start"], op["end"]) for op in operations if op["lane"] == lane)
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(times))
    memory = next(entry for entry in entries if entry["group"] == "memory")
    assert [row["depth"] for row in memory["memory"]][-3:] == [1, 2, 3]
    assert all("energy_reason" in entry and "operations" in entry for entry in (step, schedule))


@pytest.mark.slow
def test_quick_run_reports_every_entry(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "bench", "-k", "cpu", "-q"]
    command += ["--bench-quick", "--bench-out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    found = json.loads((tmp_path / "cpu.json").read_text())
    assert found["conditions"]["threads"] == 1
    if sys.platform == "linux":
        assert found["conditions"]["malloc"] == "freed pages are kept (mallopt)"
    names = [entry["name"] for entry in found["entries"]]
    for part in ("posterior_kl bernoulli", "class_evidence_loss gaussian", "local step"):
        assert any(name.startswith(part) for name in names)
    for entry in found["entries"]:
        assert f"{entry['name']}:" in done.stdout
        if entry["rejected"]:
            # Tiny shapes are not what the limits are measured for.
            assert "limit" in entry["rejected"]
            continue
        assert entry["ours"]["seconds"] > 0 and entry["peers"]
        ratios = {name: peer["ratio"] for name, peer in entry["peers"].items()}
        assert all(ratio > 0 for ratio in ratios.values())
        for goal in entry["goals"]:
            assert goal["reached"] == (ratios[goal["peer"]] >= goal["ratio"])
