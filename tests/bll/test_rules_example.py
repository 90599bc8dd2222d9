"""The rule that docs/adding-a-rule.md shows: it is short, correct, and learns."""

import re
from pathlib import Path

import pytest
import torch
from rule_cases import Row, pooled
from test_rules_gradient import materialised
from test_rules_learning import digits, narrow, train
from wrap_nets import seeded

import bll
from bll_kernels.optim import BlockAdam

PAGE = Path(__file__).resolve().parents[2] / "docs" / "adding-a-rule.md"


@pytest.fixture(scope="module")
def shown():
    """The names that the page's two pieces of code define."""
    rule, row = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names = {"torch": torch, "Row": Row, "pooled": pooled, "__name__": "shown"}
    exec(compile(rule, "the page's rule", "exec"), names)
    exec(compile(row, "the page's row", "exec"), names)
    assert len(rule.strip().splitlines()) <= 40
    return names


@pytest.mark.parametrize("shape", [(9, 6), (9, 4, 5, 5)], ids=str)
def test_its_gradients_are_those_of_its_row(shown, shape):
    row = shown["ROW"]
    feature = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    labels = torch.tensor([0, 2, 3, 3, 2, 4, 4, 4, 2])
    message, spec = materialised(row.rule, feature, 5)
    wanted = [feature.requires_grad_(), *message.parameters()]
    given = torch.autograd.grad(row.rule.loss(feature, labels, message, spec.pool), wanted)
    expected = torch.autograd.grad(row.formula(feature, labels, message), wanted)
    for own, other in zip(given, expected, strict=True):
        torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-12)


def test_it_learns_digits_and_runs_apart(shown):
    row = shown["ROW"]
    model = seeded(narrow, 1)
    bll.wrap(model, rule=row.rule, num_classes=10, example=digits()[0][:2], seed=1)
    assert bll.executor(model).certificate[0].stale_by == 0
    accuracy = train(model, BlockAdam(bll.param_groups(model, lr=5e-3)), epochs=6)
    assert accuracy > row.accuracy


def test_it_refuses_bad_options(shown):
    with pytest.raises(ValueError, match="grid: expected at least 1, got 0"):
        shown["HingeRule"](grid=0)
