"""A run as Markdown."""

from __future__ import annotations

from typing import Any, Final

PEERS: Final = ("eager", "distributions", "compile", "one graph", "fused", "liger")


def _ratio(entry: dict[str, Any], peer: str) -> str:
    found = entry["peers"].get(peer)
    if found is None:
        return "-"
    if "missing" in found:
        return "missing"
    return f"{found['ratio']['ratio']:.2f} {found['timed_in']}"


def markdown(plain: dict[str, Any]) -> str:
    """The run as tables; times are medians in microseconds, ratios are peer over ours."""
    now = plain["conditions"]
    commit = now["commit"] or "not known"
    if now["commit_from"] not in ("git", None):
        commit += f" as {now['commit_from']} says"
    lines = [
        f"# GPU run of {now['date']}",
        "",
        f"{now['device']}, torch {now['torch']} (CUDA {now['cuda']}), commit {commit}"
        + (" with uncommitted changes" if now["uncommitted_changes"] else "")
        + f", sources {now['sources'][:12]}",
        "",
        "| stage | result | seconds | note |",
        "| --- | --- | --- | --- |",
    ]
    for name, stage in plain["stages"].items():
        row = (name, stage["result"], f"{stage['seconds']:.0f}", stage["note"])
        lines.append(f"| {' | '.join(row)} |")
    lines += _entry_lines(plain["entries"])
    lines += _executor_lines(plain["executors"])
    lines += _result_lines("suite", plain["suites"])
    lines += _result_lines("check", plain["checks"])
    return "\n".join(lines) + "\n"


def _entry_lines(entries: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every kernel on every backend."""
    if not entries:
        return []
    head = ["kernel", "backend", "timed", "cold us", "hot us", "host us", "GB/s", "of copy"]
    head += [f"x {peer}" for peer in PEERS] + ["error", "gate"]
    lines = [
        "",
        "Every time says how it was taken: graph, replays of a CUDA graph; stream, calls from the "
        "host, which may decide.",
        "",
        "| " + " | ".join(head) + " |",
        "| --- " * len(head) + "|",
    ]
    for name, entry in entries.items():
        if "failure" in entry:
            failure = entry["failure"].replace("|", "/")
            lines.append(f"| {name} | {entry.get('backend', '-')} | failed: {failure} |")
            continue
        ours = entry["ours"]
        rate = entry["bytes"] / ours["cold_us"] / 1e3
        row = [name, entry["backend"], ours["timed_in"], f"{ours['cold_us']:.2f}"]
        row += [f"{ours['hot_us']:.2f}", f"{ours['host_us']:.1f}"]
        row += [f"{rate:.0f}", f"{rate / entry['copy_gb_s']:.0%}"]
        row += [_ratio(entry, peer) for peer in PEERS]
        row += [f"{entry['error']:.1e}", "passed" if entry["gate"] else "FAILED"]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _executor_lines(executors: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every network: milliseconds of a step, and the goals."""
    if not executors:
        return []
    head = ("executor", "ms of a step", "goals missed", "failures", "not reached")
    lines = ["", f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for name, entry in executors.items():
        if "failure" in entry:
            lines.append(f"| {name} | - | - | {entry['failure'].replace('|', '/')} | - |")
            continue
        times = ", ".join(f"{peer} {ms:.3f}" for peer, ms in entry["milliseconds"].items())
        missed = ", ".join(goal for goal, met in entry["goals_met"].items() if not met) or "none"
        failed = [f"gate of {mode}: {why}" for mode, why in entry["gates_failed"].items()]
        failed += [f"{peer}: {why}" for peer, why in entry["failures"].items()]
        failures = "; ".join(failed).replace("|", "/") or "none"
        left = ", ".join(entry["not_reached"]) or "none"
        lines.append(f"| {name} | {times} | {missed} | {failures} | {left} |")
    return lines


def _result_lines(kind: str, results: dict[str, dict[str, Any]]) -> list[str]:
    """A line for every suite or check."""
    if not results:
        return []
    lines = ["", f"| {kind} | result | seconds | note |", "| --- " * 4 + "|"]
    for name, found in results.items():
        note = found["note"].replace("|", "/")
        lines.append(f"| {name} | {found['result']} | {found['seconds']:.0f} | {note} |")
    return lines
