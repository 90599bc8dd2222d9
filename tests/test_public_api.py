"""What users may rely on: names, versions, backend selection, the diagnosis."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import bll
import bll_kernels
from bll_kernels import diagnostics

ROOT = Path(__file__).resolve().parent.parent


def test_every_public_name_is_documented_in_the_list():
    listed = (ROOT / "docs" / "api.md").read_text()
    for name in {*bll_kernels.__all__, *bll.__all__}:
        assert f"`{name}" in listed, name


def test_twins_take_what_the_losses_take():
    import inspect

    names = ("posterior_kl", "evidence_loss", "class_evidence_loss", "linear_cross_entropy")
    for name in (*names, "gram_loss"):
        loss = inspect.signature(getattr(bll_kernels, name)).parameters
        twin = inspect.signature(getattr(bll_kernels, f"{name}_value_and_grad")).parameters
        assert list(twin)[: len(loss)] == list(loss)
        following = ["next_input", "next_dtype"] if name in names[:2] else []
        assert list(twin)[len(loss) :] == ["wrt", "compact_grad", *following]
        assert all(twin[p].default == loss[p].default for p in loss)


def test_version_is_stated_once():
    assert (
        'version = { attr = "bll_kernels._version.__version__" }'
        in (ROOT / "pyproject.toml").read_text()
    )
    assert bll_kernels.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_backend_for_answers_before_the_call(backend):
    a = torch.zeros(2, 3)
    with bll_kernels.use_backend(backend):
        assert bll_kernels.backend_for("posterior_kl", a) == backend
        assert bll_kernels.backend_for("grid_pool", device="cpu") == backend
    with pytest.raises(ValueError, match="function: expected one of"):
        bll_kernels.backend_for("softmax", a)
    with pytest.raises(ValueError, match="dtype: expected a floating dtype"):
        bll_kernels.backend_for("posterior_kl", dtype=torch.int32)


def test_a_requested_backend_never_falls_back():
    with pytest.raises(ValueError, match="backend: expected one of"), bll_kernels.use_backend("x"):
        pass
    with bll_kernels.use_backend("reference"):
        assert bll_kernels.backend_for("posterior_kl", device="cuda") == "reference"
    if bll_kernels.available()["native"] is not None:
        with pytest.raises(RuntimeError, match="not available"), bll_kernels.use_backend("native"):
            pass
    else:
        with bll_kernels.use_backend("native"), pytest.raises(RuntimeError, match="does not serve"):
            bll_kernels.backend_for("posterior_kl", device="cuda")


def test_diagnosis_is_plain_data_and_text():
    data = diagnostics.report()
    assert json.loads(json.dumps(data)) == data
    assert data["backends"]["reference"]["usable"] is True
    run = subprocess.run(
        [sys.executable, "-m", "bll_kernels"], capture_output=True, text=True, check=True
    )
    assert f"bll_kernels {bll_kernels.__version__}" in run.stdout
    assert "posterior_kl: cpu -> " in run.stdout
