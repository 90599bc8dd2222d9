"""What a run writes: one JSON, one Markdown table, one log, flushed as results come."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import bll_kernels
from bll.bench.conditions import command_output
from bll.bench.conditions import gpu_state as device_state

__all__ = ["ROOT", "Record", "conditions", "device_state", "markdown"]

ROOT = Path(__file__).resolve().parents[2]


def conditions() -> dict[str, Any]:
    """What every number of a run depends on."""
    commit = command_output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changes = command_output(
        "git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "uncommitted_changes": None if changes is None else bool(changes),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "device_state": device_state(),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "bll_kernels": bll_kernels.__version__,
        "backends": bll_kernels.available(),
    }


class Record:
    """The results of a run in a folder; a second run with the same commit continues the first."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.now = conditions()
        self.stages: dict[str, dict[str, Any]] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.executors: dict[str, dict[str, Any]] = {}
        path = folder / "gpu.json"
        if path.is_file():
            before = json.loads(path.read_text())
            same = before["conditions"]["commit"] == self.now["commit"] is not None
            if same and not self.now["uncommitted_changes"]:
                self.stages = before["stages"]
                self.entries = before["entries"]
                self.executors = before.get("executors", {})

    def log(self, text: str) -> None:
        """Appends to the log and prints."""
        print(text, flush=True)
        with (self.folder / "gpu.log").open("a") as file:
            file.write(text.rstrip() + "\n")

    def stage(self, name: str, **result: Any) -> None:
        """Files how a stage ended."""
        self.stages[name] = result
        self.flush()

    def entry(self, name: str, result: dict[str, Any]) -> None:
        """Files one measured kernel."""
        self.entries[name] = result
        self.flush()

    def executor(self, name: str, result: dict[str, Any]) -> None:
        """Files one network of the executor's stage."""
        self.executors[name] = result
        self.flush()

    def flush(self) -> None:
        """Writes the JSON and the table."""
        plain = {
            "conditions": self.now,
            "stages": self.stages,
            "entries": self.entries,
            "executors": self.executors,
        }
        (self.folder / "gpu.json").write_text(json.dumps(plain, indent=1) + "\n")
        (self.folder / "gpu.md").write_text(markdown(plain))


def _ratio(entry: dict[str, Any], peer: str) -> str:
    found = entry["peers"].get(peer)
    if found is None:
        return "-"
    if "missing" in found:
        return "missing"
    return f"{found['ratio']['ratio']:.2f}"


PEERS = ("eager", "distributions", "compile", "one graph", "fused")


def markdown(plain: dict[str, Any]) -> str:
    """The run as tables; times are medians in microseconds, ratios are peer over ours."""
    now = plain["conditions"]
    lines = [
        f"# GPU run of {now['date']}",
        "",
        f"{now['device']}, torch {now['torch']} (CUDA {now['cuda']}), commit {now['commit']}"
        + (" with uncommitted changes" if now["uncommitted_changes"] else ""),
        "",
        "| stage | result | seconds | note |",
        "| --- | --- | --- | --- |",
    ]
    for name, stage in plain["stages"].items():
        verdict = "passed" if stage["ok"] else "FAILED"
        lines.append(f"| {name} | {verdict} | {stage['seconds']:.0f} | {stage['note']} |")
    if plain["entries"]:
        head = ["kernel", "backend", "cold us", "hot us", "host us", "GB/s", "of copy"]
        head += [f"x {peer}" for peer in PEERS] + ["error", "gate"]
        lines += ["", "| " + " | ".join(head) + " |", "| --- " * len(head) + "|"]
    for name, entry in plain["entries"].items():
        if "failure" in entry:
            lines.append(f"| {name} | {entry['backend']} | failed: {entry['failure']} |")
            continue
        ours = entry["ours"]
        rate = entry["bytes"] / ours["cold_us"] / 1e3
        share = rate / entry["copy_gb_s"]
        row = [name, entry["backend"], f"{ours['cold_us']:.2f}", f"{ours['hot_us']:.2f}"]
        row += [f"{ours['host_us']:.1f}", f"{rate:.0f}", f"{share:.0%}"]
        row += [_ratio(entry, peer) for peer in PEERS]
        row += [f"{entry['error']:.1e}", "passed" if entry["gate"] else "FAILED"]
        lines.append("| " + " | ".join(row) + " |")
    lines += _executor_lines(plain["executors"])
    return "\n".join(lines) + "\n"


def _executor_lines(executors: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every network: milliseconds of a step, and the goals."""
    if not executors:
        return []
    lines = ["", "| executor | ms of a step | goals missed | failures |", "| --- " * 4 + "|"]
    for name, entry in executors.items():
        times = ", ".join(f"{peer} {ms:.3f}" for peer, ms in entry["milliseconds"].items())
        missed = ", ".join(goal for goal, met in entry["goals_met"].items() if not met) or "none"
        failures = "; ".join(f"{k}: {v}" for k, v in entry["failures"].items()) or "none"
        lines.append(f"| {name} | {times} | {missed} | {failures.replace('|', '/')} |")
    return lines
