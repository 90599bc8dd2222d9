"""docs/rules.md is what its tool writes, and the tool says of schedules what the executor does."""

import csv

import pytest
import torch
from rule_cases import ROWS
from torch import nn

import bll
from bll.rules import get_rule, rule_names
from bll_kernels.pipeline.block import LOCAL_READS
from tools import rule_table


def test_the_page_is_current():
    assert rule_table.PAGE.read_text() == rule_table.page(), "run python tools/rule_table.py"


def test_every_rule_names_its_source_and_has_a_section():
    page = rule_table.PAGE.read_text()
    for name in rule_names():
        assert get_rule(name).source, name
        assert f"\n### `{name}` (" in page


@pytest.mark.parametrize("name", rule_names())
def test_the_table_says_what_the_executor_does(name):
    (row,) = [
        line for line in rule_table.support_table().splitlines() if line.startswith(f"| `{name}` |")
    ]
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3))
    bll.wrap(model, ["0", "1"], rule=name, num_classes=3, example=torch.zeros(2, 4))
    for cell, mode in zip(row.split("|")[5:7], ("sequential", "pipelined"), strict=True):
        try:
            run = bll.executor(model, mode=mode)
            verdict = "stale" if any(line.stale_by for line in run.certificate) else "exact"
        except ValueError as error:
            assert f"reads {', '.join(sorted(get_rule(name).reads - LOCAL_READS))}" in str(error)
            verdict = "refused"
        assert cell.strip().startswith(verdict), mode


def test_the_measured_table_has_every_rule():
    with rule_table.RUNS.open(newline="") as stream:
        runs = [(line["rule"], line["seed"]) for line in csv.DictReader(stream)]
    assert {rule for rule, _ in runs} == {row.rule.name for row in ROWS}
    assert len(runs) == len(set(runs)) >= 2 * len(rule_names())


def test_the_means_are_those_of_the_seeds():
    lines = [
        {
            "rule": rule, "test_accuracy": accuracy, "params": "10", "params_with_feedback": "13",
            "step_ms_median": "1.5", "cpu_seconds": "2", "peak_memory_mib": "7",
        }
        for rule, accuracy in (("a", "50"), ("b", "90.0"), ("a", "51.0"))
    ]  # fmt: skip
    table = rule_table.digits_table(lines).splitlines()[2:]
    assert table == [
        "| `b` | 90.0 | 90.0 | 3 | 1.5-1.5 | 2.0 | 7-7 |",
        "| `a` | 50.5 | 50.0 / 51.0 | 3 | 1.5-1.5 | 2.0 | 7-7 |",
    ]
