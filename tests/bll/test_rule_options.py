"""Options of rules as text: read by type, checked, and the same after a round trip."""

import json
from typing import Any

import pytest

from bll.rules import get_rule, rule_names
from bll.training.config import TrainConfig
from bll.training.options import resumed_config
from bll.training.rule_options import options_text, plain_options, plain_value, rule_with_options

GOOD: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("bll", {"tilt": "0.5", "pool": "std:3"}, {"tilt": 0.5, "pool": ("std", 3)}),
    ("bll", {"tilt": 2, "pool": ["max", 2]}, {"tilt": 2.0, "pool": ("max", 2)}),
    ("bll", {"gain": "1e-1", "feedback": "chained"}, {"gain": 0.1, "feedback": "chained"}),
    ("bll-proto", {"sign": "1", "absent": "zero"}, {"sign": 1, "absent": "zero"}),
    ("ccl", {"feedback_width": "8"}, {"feedback_width": 8}),
    ("dgl", {"units": "8", "layers": 1}, {"units": 8, "layers": 1}),
]


@pytest.mark.parametrize(("name", "given", "expected"), GOOD)
def test_text_and_values_make_the_rule(name, given, expected):
    plain = plain_options(name, given)
    assert rule_with_options(name, None, json.loads(json.dumps(plain))) == get_rule(
        name, **expected
    )
    assert {option: type(value) for option, value in plain.items()} == {
        option: list if isinstance(value, tuple) else type(value)
        for option, value in expected.items()
    }


@pytest.mark.parametrize(
    ("text", "canonical", "number"),
    [
        ("gaussian-precision:0.50", "gaussian-precision:0.5", 0.5),
        ("gaussian-precision", "gaussian-precision:1.0", 1.0),
        ("categorical:4", "categorical:4", 4),
    ],
)
def test_a_family_with_its_number(text, canonical, number):
    plain = plain_options("bll", {"family": text})
    assert plain == {"family": canonical}
    rule = rule_with_options("bll", None, plain)
    assert number in (rule.family.tau, rule.family.group)
    assert plain_value(rule, "family") == canonical


@pytest.mark.parametrize("name", rule_names())
def test_every_default_is_read_back_from_its_text(name):
    """So that what a summary or a refusal prints can be given again."""
    rule = get_rule(name)
    for option in vars(rule):
        value = None if option.startswith("_") or option == "reads" else plain_value(rule, option)
        if value is not None:
            text = options_text({option: value}).partition("=")[2]
            assert plain_options(name, {option: text}) == {option: value}


@pytest.mark.parametrize(
    ("name", "given", "match"),
    [
        ("bp", {"tilt": 1}, "rule-option tilt: rule 'bp' has no such option; expected none"),
        ("bll", {"_family": "gaussian"}, "rule-option _family: rule 'bll' has no such option"),
        ("bll", {"tilt": "warm"}, "rule-option tilt: expected a finite number, got 'warm'"),
        ("bll", {"tilt": "nan"}, "rule-option tilt: expected a finite number, got 'nan'"),
        ("bll", {"tilt": True}, "rule-option tilt: expected a finite number, got True"),
        ("bll", {"max_width": 2.0}, "rule-option max_width: expected a whole number, got 2.0"),
        ("bll", {"pool": ["max"]}, r"rule-option pool: .*max:2, got \['max'\]"),
        ("bll", {"feedback": 1}, "rule-option feedback: expected text, got 1"),
        ("bll", {"family": "cauchy"}, "rule-option family: expected one of .*, got 'cauchy'"),
        ("bll", {"family": "gaussian:2"}, "family: expected NAME or .*tau.*, got 'gaussian:2'"),
        ("bll", {"family": "gaussian-precision:-1"}, "family: tau: expected a positive .*-1"),
        ("bll", {"family": "categorical:1.5"}, "family: expected NAME .*, got 'categorical:1.5'"),
        ("bll", {"tilt": -1}, "rule-option tilt: expected a positive finite number, got -1"),
        ("bll", {"pool": "median:2"}, r"rule-option pool: expected \(kind, grid\)"),
    ],
)  # fmt: skip
def test_refusals_name_the_option(name, given, match):
    with pytest.raises(ValueError, match=match):
        TrainConfig(dataset="digits", rule=name, rule_options=given)


def test_the_family_of_a_run_may_have_its_number():
    rule = TrainConfig(dataset="digits", family="gaussian-precision:0.5").make_rule()
    assert rule.describe()["tau"] == 0.5
    for given in ("cauchy", "gaussian:2", "gaussian-precision:-1"):
        with pytest.raises(ValueError, match=r"^family: "):
            TrainConfig(dataset="digits", family=given)


def test_a_family_is_given_once():
    with pytest.raises(ValueError, match="rule-option family: given by --family too"):
        TrainConfig(dataset="digits", family="bernoulli", rule_options={"family": "gaussian"})


def test_options_change_what_the_executor_may_do():
    with pytest.raises(ValueError, match="executor: rule 'bll' reads next-feedback"):
        TrainConfig("digits", executor="auto", rule_options={"feedback": "chained"})
    # There it has a lane of its own.
    TrainConfig("digits", executor="pipelined", rule_options={"feedback": "chained"})


def test_a_stored_run_keeps_its_options():
    config = TrainConfig("digits", rule_options={"pool": "max:2", "family": "categorical:4"})
    stored = json.loads(json.dumps(config.to_record()))
    assert TrainConfig.from_record(stored) == config
    again = {"pool": ["max", 2], "family": "categorical:4", "tilt": "1"}
    assert resumed_config(stored, {"rule_options": again}) == config
    with pytest.raises(ValueError, match="pool: the run in --out has pool=max:2, got pool=max:1"):
        resumed_config(stored, {"rule_options": {"pool": "max:1"}})
