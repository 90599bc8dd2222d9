"""A report as Markdown: one table per run, with its conditions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bll.bench.report.read import Measurements
from bll.bench.text import HEADINGS, bytes_text, condition_lines, error_text, seconds_text


def _cells(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def _peer_names(entries: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for entry in entries for name in entry.get("peers", {})))


def _ratio_cell(entry: dict[str, Any], peer: str) -> str:
    facts = entry["peers"].get(peer)
    if facts is None:
        return ""
    if "missing" in facts:
        return "missing"
    return f"{facts['ratio']:.2f} [{facts['ratio_low']:.2f}, {facts['ratio_high']:.2f}]"


def _timed_table(entries: list[dict[str, Any]]) -> Iterator[str]:
    peers = _peer_names(entries)
    head = ["entry", "ours", *(f"x {peer}" for peer in peers), "error", "of limit", "J, net"]
    yield _cells(*head)
    yield _cells(*["---"] * len(head))
    for entry in entries:
        share = entry.get("of_limit")
        energy = (entry.get("energy") or {}).get("ours")
        yield _cells(
            entry["name"],
            seconds_text(entry["ours"]["seconds"]),
            *(_ratio_cell(entry, peer) for peer in peers),
            error_text(entry["gate"]["error"]),
            "-" if share is None else f"{share:.0%} of {entry['bound_by']}",
            "-" if energy is None else f"{energy['net_joules_per_step']:.3g}",
        )


def _memory_table(entries: list[dict[str, Any]]) -> Iterator[str]:
    yield _cells("network", "form", "blocks in flight", "peak above the level before")
    yield _cells(*["---"] * 4)
    for entry in entries:
        for row in entry["memory"]:
            depth = "" if row["depth"] is None else str(row["depth"])
            size = "unknown" if row["peak_bytes"] is None else bytes_text(row["peak_bytes"])
            yield _cells(entry["name"], row["form"], depth, size)


def missing_peers(entries: list[dict[str, Any]]) -> list[str]:
    """Every peer that could not run, with its reason, once."""
    found: dict[str, None] = {}
    for entry in entries:
        for peer, facts in entry.get("peers", {}).items():
            if "missing" in facts:
                found[f"{peer}: {facts['missing']}"] = None
    return list(found)


def energy_reasons(entries: list[dict[str, Any]]) -> list[str]:
    """Why entries have no energy, each reason once."""
    return list(
        dict.fromkeys(e["energy_reason"] for e in entries if e.get("energy_reason") is not None)
    )


def run_lines(run: dict[str, Any]) -> Iterator[str]:
    """One benchmark run."""
    yield f"## {run['source']}"
    yield ""
    yield from condition_lines(run["conditions"])
    yield ""
    good = [entry for entry in run["entries"] if not entry["rejected"]]
    timed = [entry for entry in good if "ours" in entry]
    for group in dict.fromkeys(entry["group"] for entry in timed):
        yield f"### {HEADINGS.get(group, group)}"
        yield ""
        yield from _timed_table([entry for entry in timed if entry["group"] == group])
        yield ""
    memory = [entry for entry in good if "memory" in entry]
    if memory:
        yield f"### {HEADINGS['memory']}"
        yield ""
        yield from _memory_table(memory)
        yield ""
    for entry in run["entries"]:
        if entry["rejected"]:
            yield f"- REJECTED {entry['name']}: {entry['rejected']}"
    for line in missing_peers(good):
        yield f"- missing: {line}"
    for reason in energy_reasons(good):
        yield f"- no energy: {reason}"
    if run["left_out"]:
        yield f"- left out, the time budget was used up: {', '.join(run['left_out'])}"
    yield ""


def training_lines(trainings: list[dict[str, Any]]) -> Iterator[str]:
    """Training runs: accuracy, and energy to it with its factors apart."""
    yield "## training runs"
    yield ""
    head = ["run", "data", "model", "rule", "accuracy, %"]
    head += ["epochs", "s per epoch", "W", "J in all", "conditions"]
    yield _cells(*head)
    yield _cells(*["---"] * len(head))
    for run in trainings:
        seconds, joules = run["seconds"], run.get("energy_j")
        epochs = run.get("epochs_trained", run["epochs"])
        yield _cells(
            run["source"],
            run["dataset"],
            f"{run['model']}, {run['blocks']} blocks",
            run["rule"],
            f"{run['test_accuracy']:.2f}",
            str(epochs),
            f"{seconds / max(epochs, 1):.3g}",
            "-" if joules is None else f"{joules / seconds:.3g}",
            f"null: {run.get('energy_reason')}" if joules is None else f"{joules:.4g}",
            f"{run['device']}, {run['dtype']}, {run['threads']} threads, seed {run['seed']}, "
            f"torch {run['versions']['torch']}, commit {(run['commit'] or 'unknown')[:10]}",
        )
    yield ""


def accuracy_lines(rows: list[dict[str, str]]) -> Iterator[str]:
    """The accuracy table: every seed by itself."""
    yield "## accuracy"
    yield ""
    head = ["data", "model", "rule", "family", "accuracy by seed, %"]
    yield _cells(*head)
    yield _cells(*["---"] * len(head))
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        key = (row["dataset"], row["model"], row["rule"], row["family"])
        groups.setdefault(key, []).append(f"{float(row['test_accuracy']):.2f}")
    for names, values in groups.items():
        yield _cells(*names, " / ".join(values))
    yield ""


def markdown(found: Measurements) -> str:
    """The whole report."""
    lines = ["# Benchmark report", ""]
    lines += [
        "Ratios are the peer's time by ours, with the quartiles of the interleaved rounds: above 1",
        "ours is faster. Errors are of the gradient against float64. The limit is a plain copy of",
        "the same bytes, or the same matrix products at full speed, measured on the same machine.",
        "",
    ]
    for run in found.runs:
        lines += run_lines(run)
    if found.trainings:
        lines += training_lines(found.trainings)
    if found.accuracy:
        lines += accuracy_lines(found.accuracy)
    if found.other:
        names = ", ".join(f"`{path.name}`" for path in found.other)
        lines += ["", f"Other files, left out: {names}."]
    return "\n".join(lines).rstrip() + "\n"
