"""Writes docs/rules.md from the rules themselves and the measured runs.

    python tools/rule_table.py            writes the page
    python tools/rule_table.py --check    exit status 1 if the page is not what would be written

What a schedule may do with a rule follows from what the rule reads, by the executor's own check.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import inspect
import statistics
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bll.rules import Rule, get_rule, rule_names
from bll_kernels.pipeline.block import LOCAL_READS
from bll_kernels.pipeline.certificate import TOO_LATE

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "rules.md"
RUNS = ROOT / "bench" / "results" / "accuracy" / "digits-rules.csv"
WIDTH = 120

HEAD = (
    "Written by `python tools/rule_table.py` from the rules and from "
    "`bench/results/accuracy/digits-rules.csv`; a test keeps it current. Formulas of `bll` and "
    "`bll-kl`: [method.md](method.md). A rule of your own: [adding-a-rule.md](adding-a-rule.md).",
    '`bll.wrap(model, rule="NAME")` and `bll train --rule NAME` take every rule here; '
    '`bll.wrap(model, rule=bll.get_rule("NAME", option=value))` and `bll train --rule NAME '
    "--rule-option option=value` give it options. The last block of every rule has the "
    "cross-entropy of the model's own output.",
)
SUPPORT = (
    '"Reads" is what the loss of a block before the last reads: of its own, `input`, `output`, '
    "`label` and `feedback` (its message or read-out); of other blocks, `next` (weights of the "
    "next block), `next-feedback` (weights of later messages), `error` (of the model's output) "
    "and `downstream` (gradients of later blocks). The executor may run blocks apart, in any "
    "depth and with the bits of one block at a time, only where nothing of other blocks is read. "
    "One block at a time (depth 1) it also runs what reads `next` or `next-feedback`, whose "
    "version is then that of the ordinary loop. With several in flight `next-feedback` has a lane "
    "of its own, and messages are as many updates older as the certificate says "
    "([pipeline.md](pipeline.md)). It refuses the rest, since what a block reads would be changed "
    "meanwhile or is not there yet.",
)


def _section(title: str, paragraphs: Sequence[str]) -> str:
    filled = [
        textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    ]
    return "\n\n".join([title, *filled]) + "\n"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _variants() -> list[tuple[str, Rule]]:
    """Every rule by name, and the options that change what it reads."""
    found: list[tuple[str, Rule]] = []
    for name in rule_names():
        rule = get_rule(name)
        found.append((f"`{name}`", rule))
        if name == "bll":
            found.append((f'`{name}`, `feedback="chained"`', get_rule(name, feedback="chained")))
        if name == "dgl":
            found.append((f'`{name}`, `aux="momentum"`', get_rule(name, aux="momentum")))
    return found


def support_table() -> str:
    """One row per rule: what it reads, and which ways of running it that allows."""
    rows = []
    for label, rule in _variants():
        foreign = sorted(rule.reads - LOCAL_READS)
        refused = f"refused: reads {', '.join(foreign)}"
        in_turn = refused if rule.reads & TOO_LATE else "exact"
        apart = refused if foreign else "exact"
        if foreign == ["next-feedback"]:
            apart = "stale, in a feedback lane"
        reads = ", ".join(sorted(rule.reads))
        rows.append([label, reads, "yes" if rule.cuts else "no", "yes", in_turn, apart])
    columns = (
        "rule", "reads", "cut", "ordinary loop", "executor, sequential", "executor, pipelined",
    )  # fmt: skip
    return _table(columns, rows)


def _seconds(lines: list[dict[str, str]]) -> str:
    return f"{statistics.mean(float(line['cpu_seconds']) for line in lines):.1f}"


def digits_table(lines: list[dict[str, str]]) -> str:
    """One row per rule with runs in the file, by mean accuracy."""
    by_rule: dict[str, list[dict[str, str]]] = {}
    for line in lines:
        by_rule.setdefault(line["rule"], []).append(line)
    rows = []
    for rule, runs in by_rule.items():
        accuracies = [float(run["test_accuracy"]) for run in runs]
        extra = int(runs[0]["params_with_feedback"]) - int(runs[0]["params"])
        steps = [float(run["step_ms_median"]) for run in runs]
        memory = [int(run["peak_memory_mib"]) for run in runs]
        rows.append(
            (
                -statistics.mean(accuracies),
                [
                    f"`{rule}`",
                    f"{statistics.mean(accuracies):.1f}",
                    " / ".join(f"{accuracy:.1f}" for accuracy in accuracies),
                    str(extra),
                    f"{min(steps):.1f}-{max(steps):.1f}",
                    _seconds(runs),
                    f"{min(memory)}-{max(memory)}",
                ],
            )
        )
    columns = (
        "rule", "mean", "seeds", "parameters of the rule", "step, ms", "CPU seconds", "peak MiB",
    )  # fmt: skip
    return _table(columns, [row for _, row in sorted(rows)])


def conditions(lines: list[dict[str, str]]) -> str:
    """The text above the measured table, from the lines of the file."""

    def values(name: str) -> str:
        return ", ".join(sorted({line[name] for line in lines}))

    loads = [float(line["load_average"]) for line in lines]
    return _section(
        "## What they reach on digits",
        (
            "Test accuracy in percent on scikit-learn's digits (8 x 8 pixels), which tells a rule "
            "that works from one that does not, and little more: the rules near the top cannot be "
            "told apart by it. `frozen` is the floor.",
            f"`{values('model')}` of {values('blocks')} blocks, width {values('width')} "
            f"({values('params')} parameters), {values('epochs')} epochs, batch "
            f"{values('batch_size')}, Adam {values('lr')} with a one-cycle schedule, not tuned per "
            f"rule; {values('dtype')}, {values('threads')} thread, backend {values('backend')}, "
            f"{values('device_name')}, torch {values('torch')}, seeds {values('seed')}, load "
            f"average {min(loads)} to {max(loads)} on two logical processors. Step times are the "
            "smallest and largest median of a run; CPU seconds are means of the whole process, "
            "start-up and evaluation included, and so is the memory.",
        ),
    )


def _options(rule: Rule) -> str:
    fields = [field for field in dataclasses.fields(rule) if field.init]
    shown = [f"`{field.name}={_plain(getattr(rule, field.name))}`" for field in fields]
    return f"Options and defaults: {', '.join(shown)}.\n" if shown else ""


def _plain(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _text(rule: Rule) -> str:
    """The rule's docstring without its list of attributes."""
    text = inspect.cleandoc(type(rule).__doc__ or "")
    return text.split("\nAttributes:")[0].rstrip() + "\n"


def page() -> str:
    """The whole page."""
    parts = [
        _section("# Learning rules", HEAD),
        _section("## Rules and schedules", SUPPORT),
        support_table(),
    ]
    if RUNS.exists():
        with RUNS.open(newline="") as stream:
            lines = list(csv.DictReader(stream))
        parts += [conditions(lines), digits_table(lines)]
    parts.append("## The rules\n")
    for name in rule_names():
        rule = get_rule(name)
        source = f" ({rule.source})" if rule.source else ""
        parts += [f"### `{name}`{source}\n", _text(rule), _options(rule)]
    return "\n".join(part for part in parts if part)


def main() -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare instead of writing")
    if parser.parse_args().check:
        return 0 if PAGE.exists() and PAGE.read_text() == page() else 1
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
