"""The tables of docs/learning.md, made of the CSV files, between marks that stay in the page."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from bench.gpu.table1 import PUBLISHED
from tools.experiments.table import read_rows

Row = Mapping[str, str]
_MARK: Final = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CELLS: Final = {
    "fashion-mnist-resnet18": "Fashion-MNIST, ResNet-18",
    "fashion-mnist-resnet50": "Fashion-MNIST, ResNet-50",
    "cifar-10-resnet50": "CIFAR-10, ResNet-50",
}
_RULES: Final = {"bp": "BP", "fa": "FA", "pred-sim": "Pred-Sim", "bll": "BLL"}


def filled(page: str, folder: Path) -> str:
    """The page with its tables made anew.

    Args:
        page: Text with marks ``<!-- table: NAME -->`` and ``<!-- end -->``.
        folder: Where the CSV files lie.

    Raises:
        ValueError: A mark names no table, or its file is not there.
    """

    def replace(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"page: expected a table of {', '.join(TABLES)}, got {match[2]!r}")
        return f"{match[1]}{TABLES[match[2]](folder)}{match[3]}"

    return _MARK.sub(replace, page)


def groups(rows: Sequence[Row], *columns: str) -> dict[tuple[str, ...], list[Row]]:
    """Rows by the values of some columns, in the order of their first row."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["seed"])):
        found.setdefault(tuple(row[name] for name in columns), []).append(row)
    return found


def finished(rows: Sequence[Row]) -> list[float]:
    """Test accuracies of the runs that came to their end."""
    return [float(row["test_accuracy"]) for row in rows if row["status"] == "finished"]


def _markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    text = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in text)


def _mean(rows: Sequence[Row]) -> str:
    values = finished(rows)
    if len(values) < len(rows):
        return f"{len(rows) - len(values)} of {len(rows)} diverged"
    if len(values) == 1:
        return f"{values[0]:.2f} (one seed)"
    spread = f"{min(values):.2f} to {max(values):.2f}; {len(values)} seeds"
    return f"{statistics.fmean(values):.2f} ({spread})"


def _cpu(rows: Sequence[Row]) -> str:
    return f"{statistics.fmean(float(row['cpu_seconds']) for row in rows):.0f}"


def _options(text: str) -> str:
    return f"`{text[1:-1]}`" if text else ""


def _rules(folder: Path) -> str:
    rows = read_rows(folder / "rules.csv")
    by_rule = groups(rows, "rule", "rule_options")
    reference = statistics.fmean(finished(by_rule["bp", ""]))
    lines = []
    for (rule, options), runs in by_rule.items():
        values = finished(runs)
        gap = f"{statistics.fmean(values) - reference:+.2f}" if values else ""
        seeds = " / ".join(f"{value:.2f}" for value in values)
        lines.append([f"`{rule}`", _options(options), _mean(runs), gap, seeds, _cpu(runs)])
    lines.sort(key=lambda line: float(line[3] or "-inf"), reverse=True)
    return _markdown(["rule", "options", "mean (range)", "to `bp`", "seeds", "CPU s"], lines)


def _crossed(name: str, down: str, across: str) -> Callable[[Path], str]:
    """A table of means: one line for each value of `down`, one column for each of `across`."""

    def make(folder: Path) -> str:
        cells = groups(read_rows(folder / f"{name}.csv"), down, across)
        columns = sorted({column for _, column in cells}, key=int)
        lines = []
        for line in dict.fromkeys(line for line, _ in cells):
            found = [cells.get((line, column)) for column in columns]
            lines.append([f"`{line}`", *("" if runs is None else _mean(runs) for runs in found)])
        return _markdown([down, *(f"{c} {across}" for c in columns)], lines)

    return make


def _listed(name: str, *, ranked: bool = False) -> Callable[[Path], str]:
    """A table with one line for each set of options; ranked: best first for each rate."""

    def make(folder: Path) -> str:
        keys = ("model", "width", "epochs", "lr", "blocks", "rule", "family", "rule_options")
        lines = []
        found = list(groups(read_rows(folder / f"{name}.csv"), *keys).items())
        if ranked:
            found.sort(key=lambda item: (-float(item[0][3]), -statistics.fmean(finished(item[1]))))
        for values, runs in found:
            model, width, epochs, lr, blocks, rule, family, options = values
            network = f"{model}, width {width}, {epochs} epochs at {lr}"
            named = f"`{rule}`" + (f", {family}" if family else "")
            cells = [network, blocks, named, _options(options), _mean(runs)]
            lines.append([*cells, _cpu(runs)])
        head = ["network", "blocks", "rule", "options", "mean (range)", "CPU s"]
        return _markdown(head, lines)

    return make


def _varied(name: str, said: str) -> Callable[[Path], str]:
    """A table with one line for each value of the column that is named as its experiment."""

    def make(folder: Path) -> str:
        found = groups(read_rows(folder / f"{name}.csv"), name)
        lines = [[value, _mean(runs), _cpu(runs)] for (value,), runs in found.items()]
        return _markdown([said, "mean (range)", "CPU s"], lines)

    return make


def _reversal(folder: Path) -> str:
    keys = ("rule", "rule_options", "blocks", "lr")
    lines = []
    for (rule, options, blocks, lr), runs in groups(
        read_rows(folder / "reversal.csv"), *keys
    ).items():
        steps = [row["steps_to_99"] or f"not in {row['steps']}" for row in runs]
        last = [f"{float(row['sequence_accuracy']):.1f}" for row in runs]
        named = f"`{rule}`" if rule == "bp" or blocks != "1" else f"`{rule}` (as `bp`)"
        cells = [named, _options(options), blocks, lr]
        lines.append([*cells, " / ".join(steps), " / ".join(last), _cpu(runs)])
    head = ["rule", "options", "blocks", "rate", "steps to 99 %", "sequences, %", "CPU s"]
    return _markdown(head, lines)


def _to_accuracy(folder: Path) -> str:
    keys = ("model", "width", "stop_at", "rule", "rule_options", "lr")
    lines = []
    for values, runs in groups(read_rows(folder / "to-accuracy.csv"), *keys).items():
        model, width, goal, rule, options, lr = values
        epochs = [
            row["epochs_trained"] if row["reached"] == "True" else f"not in {row['epochs']}"
            for row in runs
        ]
        network = [f"{model}, width {width}", goal, f"`{rule}`", _options(options), lr]
        lines.append([*network, " / ".join(epochs), _cpu(runs)])
    head = ["network", "accuracy, %", "rule", "options", "rate", "epochs", "CPU s"]
    return _markdown(head, lines)


def _table1(folder: Path) -> str:
    path = folder / "table1.csv"
    rows = read_rows(path) if path.is_file() else []
    lines = []
    for cell, published in PUBLISHED.items():
        for rule, accuracy in published.items():
            runs = [
                row for row in rows
                if f"{row['dataset']}-{row['model']}" == cell and row["rule"] == rule
            ]  # fmt: skip
            shown = "not yet shown"
            if runs:
                mean = statistics.fmean(float(row["test_accuracy"]) for row in runs)
                seeds = ", ".join(row["seed"] for row in runs)
                shown = f"{mean:.2f}, measured ({runs[0]['device_name']}, seeds {seeds})"
            recipe = f"[recipe](../examples/recipes/{cell}-{rule}.toml)"
            lines.append([_CELLS[cell], _RULES[rule], f"{accuracy}", shown, recipe])
    return _markdown(["cell", "rule", "published, %", "here, %", "file"], lines)


TABLES: Final[dict[str, Callable[[Path], str]]] = {
    "table1": _table1,
    "rules": _rules,
    "depth": _crossed("depth", "rule", "blocks"),
    "grid": _listed("grid"),
    "scale": _listed("scale"),
    "feedback": _listed("feedback"),
    "remedies": _listed("remedies", ranked=True),
    "wide": _listed("wide", ranked=True),
    "resnet18": _listed("resnet18", ranked=True),
    "cifar": _listed("cifar", ranked=True),
    "reach": _varied("reach", "blocks before its own"),
    "families": _varied("families", "families of the first three blocks"),
    "mixing": _varied("mixing", "share of samples at first"),
    "precision": _listed("precision"),
    "shallow": _listed("shallow"),
    "reversal": _reversal,
    "to-accuracy": _to_accuracy,
}
