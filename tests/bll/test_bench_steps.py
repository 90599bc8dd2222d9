"""The accuracy gate of the suite of whole steps."""

from __future__ import annotations

import pytest

import bll_kernels as bk
from bll.bench import step_suite
from bll.bench.steps import StepCase, gate_errors
from bll_kernels.backends import selection
from tests.bll.test_bench_measure import bench

SMALL = StepCase("mlp", (1, 8, 8), 32, 4, 32, "cpu")
#: Half a million activations: some lie so near to zero that float32 takes their sign another way.
LARGE = StepCase("mlp", (1, 28, 28), 256, 4, 1024, "cpu")


def test_gradients_of_a_step_are_those_of_float64():
    errors = gate_errors(SMALL)
    assert 0 < errors.ours < step_suite.STEP_GATE
    assert 0 < errors.plain < step_suite.STEP_GATE


def test_activations_next_to_zero_do_not_fail_the_gate():
    errors = gate_errors(LARGE)
    assert errors.ours <= max(step_suite.STEP_GATE, step_suite.ROUNDING * errors.plain)


def test_a_wrong_gradient_is_not_timed(monkeypatch: pytest.MonkeyPatch):
    true = bk.class_evidence_loss

    def scaled(*arguments, **options):
        served_by_default = selection._forced is None
        return (1.001 if served_by_default else 1.0) * true(*arguments, **options)

    monkeypatch.setattr(bk, "class_evidence_loss", scaled)
    # A bench without times: asking it for one would raise.
    entry = step_suite.step_entry(SMALL, bench(), compile_peers=False, quick=True)
    assert not entry["gate"]["passed"] and "is above" in entry["rejected"]
