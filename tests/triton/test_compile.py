"""Kernels compiled ahead of time for every target, without a GPU: no spills, wide accesses."""

from __future__ import annotations

import pytest
import torch
from conftest import REQUIRED

from bll_kernels.backends import triton as triton_backend

if triton_backend.MISSING is not None and "triton" not in REQUIRED:
    pytest.skip(f"triton: {triton_backend.MISSING}", allow_module_level=True)

import triton
import triton.language as tl

from bench.compile_report import TARGETS, Row, compile_launch, report
from bll_kernels.backends.triton import launch


@triton.jit
def crowded(out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    x = tl.load(out_ptr + at)
    y = tl.load(out_ptr + BLOCK + at)
    tl.store(out_ptr + at, x * tl.sum(y) + y * tl.sum(x * y))


def test_the_detector_detects() -> None:
    with launch.recording() as found:
        launch.launch(crowded, 1, 1, out_ptr=torch.zeros(1), BLOCK=8192)
    row = compile_launch("crowded", found[0], 90)
    assert row.stack > 0 and row.spills > 0


def check(rows: list[Row]) -> None:
    assert {row.target for row in rows} == set(TARGETS)
    for row in rows:
        assert row.stack == 0 and row.spills == 0, row
        assert row.registers <= 128, row


def test_no_spills() -> None:
    check(list(report(False, TARGETS)))


@pytest.mark.slow
def test_no_spills_of_any_loss() -> None:
    check(list(report(True, TARGETS)))
