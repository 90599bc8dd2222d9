"""A few of the models that `python -m tools.model_matrix` wraps, and the page it made of all."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tools.model_matrix.candidates import (
    own_candidates,
    timm_candidates,
    transformers_candidates,
)
from tools.model_matrix.check import check

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
REQUIRED = "models" in os.environ.get("BLL_REQUIRE", "").split(",")
REFUSED = {
    "AlbertForSequenceClassification": "no nn.Sequential or nn.ModuleList of two or more",
    "T5ForSequenceClassification": "tied weights: modules 'transformer.shared' and",
    "BartForSequenceClassification": "tied weights: modules 'model.shared' and",
    "GPT2LMHeadModel": "tied weights: modules 'transformer.wte' and 'lm_head'",
}


def needs(package):
    """Skip where a package of the extra `models` is not installed; fail where it must be."""
    if find_spec(package) is None:
        if REQUIRED:
            pytest.fail(f"BLL_REQUIRE asks for models, and {package} is not installed")
        pytest.skip(f"{package} is not installed")


def test_our_networks():
    for candidate in own_candidates()[:2]:
        assert check(candidate).refusal == ""


@pytest.mark.slow
def test_architectures_of_transformers():
    needs("transformers")
    outcomes = [check(candidate) for candidate in transformers_candidates()]
    assert len({outcome.name for outcome in outcomes}) >= 12
    for outcome in outcomes:
        if outcome.refusal or outcome.family.endswith("tied)"):
            assert REFUSED[outcome.name] in outcome.refusal
        else:
            assert outcome.blocks >= 3 and outcome.values


@pytest.mark.parametrize("module", ["resnet", "convnext", "deit", "pvt_v2", "mlp_mixer"])
def test_families_of_timm(module):
    needs("timm")
    (candidate,) = timm_candidates([module])
    outcome = check(candidate)
    assert outcome.refusal == "" and outcome.blocks >= 4


@pytest.mark.long
def test_every_family_of_timm():
    needs("timm")
    outcomes = [check(candidate) for candidate in timm_candidates()]
    assert len(outcomes) >= 90
    assert sum(not outcome.refusal for outcome in outcomes) >= 90


def test_the_page_is_of_these_models():
    text = PAGE.read_text()
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)` \| [\d,]+ \| (\w+) \| (\w+|-) \|", text, re.M)
    assert len(rows) >= 90 + 12
    assert {name for name, blocks, _ in rows if blocks == "refused"} >= set(REFUSED)
    assert all((blocks == "refused") == (checked == "-") for _, blocks, checked in rows)
