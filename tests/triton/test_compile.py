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

from bench.compile_report import TARGETS, Row, cases, compile_launch, pair_cases, report
from bll_kernels.backends.triton import (
    class_kernels,
    gram_kernels,
    group_kernels,
    launch,
    mean_kernels,
    pair_kernels,
    pool_kernels,
    reduce_kernels,
    softmax_kernels,
)


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


#: Most registers a thread may take; 128 for the kernels not named. Up to 168, three programs of
#: four warps fit a multiprocessor.
REGISTERS = {"pair_elements": 168, "group_tiles": 200, "group_sweeps": 232, "class_softmax": 168}


def check(rows: list[Row]) -> None:
    assert {row.target for row in rows} == set(TARGETS)
    for row in rows:
        assert row.stack == 0 and row.spills == 0, row
        assert row.registers <= REGISTERS.get(row.kernel, 128), row


def test_every_kernel_is_in_the_report() -> None:
    names = {launched.kernel.__name__ for _, found in cases(False) for launched in found}
    modules = (
        pair_kernels, group_kernels, class_kernels, gram_kernels, mean_kernels, pool_kernels,
        softmax_kernels,
        reduce_kernels,
    )  # fmt: skip
    takes = {
        name
        for module in modules
        for name, kernel in vars(module).items()
        if isinstance(kernel, triton.JITFunction) and "out_ptr" in kernel.arg_names
    }
    assert takes and takes <= names


def test_vector_accesses_of_the_element_kernels() -> None:
    """16 bytes at a time where rows are aligned."""
    for name, found in pair_cases(torch.bfloat16, "kl"):
        if "dense" in name and "categorical" not in name:
            assert compile_launch(name, found[0], 90).widest_access == 128, name


@pytest.mark.timeout(1800)
def test_no_spills() -> None:
    check(list(report(False, TARGETS)))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_spills_of_any_loss() -> None:
    check(list(report(True, TARGETS)))
