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

from bench.compile_report import (
    TARGETS,
    Row,
    cases,
    compile_launch,
    pair_cases,
    report,
    stack_accesses,
)
from bll_kernels.backends.triton import (
    class_kernels,
    gram_kernels,
    group_kernels,
    launch,
    mean_kernels,
    pair_kernels,
    pool_kernels,
    reduce_kernels,
    score_kernels,
    softmax_kernels,
    standardize_kernels,
    table_kernels,
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
    assert row.stack > 0 and row.spills > 0 and row.spilled


def machine_code(*lines: str) -> str:
    return "".join(
        f"        /*{16 * i:04x}*/    {line} ;   /* 0x0 */\n" for i, line in enumerate(lines)
    )


def test_predicates_in_memory_are_told_from_spilled_values() -> None:
    """As ptxas 12.8 writes it; a register that has been overwritten holds no predicates."""
    kept = ("P2R R0, PR, RZ, 0x8", "S2UR UR5, SR_CgaCtaId", "STL [R1], R0", "@P0 LDL.LU R3, [R1]")
    assert stack_accesses(machine_code(*kept)) == (0, 1)
    assert stack_accesses(machine_code(kept[0], "FADD R0, R1, R2", *kept[2:])) == (2, 0)
    assert stack_accesses(machine_code(*kept, "STL.64 [R1+0x8], R4")) == (1, 1)
    assert stack_accesses(machine_code(*kept, "@!P1 LDL R7, [R1+0x8]")) == (1, 1)


#: Most registers a thread may take; 128 for the kernels not named. Up to 168, three programs of
#: four warps fit a multiprocessor; up to 255, two do (group_tiles takes 203 from Triton 3.6,
#: pair_table 190 for sm_100).
REGISTERS = {
    "pair_elements": 168, "pair_table": 192, "group_tiles": 208, "group_table": 168,
    "group_sweeps": 232, "class_softmax": 168,
}  # fmt: skip


def check(rows: list[Row]) -> None:
    assert {row.target for row in rows} == set(TARGETS)
    for row in rows:
        assert not row.spilled, row
        assert row.registers <= REGISTERS.get(row.kernel, 128), row


def test_every_kernel_is_in_the_report() -> None:
    names = {launched.kernel.__name__ for _, found in cases(False) for launched in found}
    modules = (
        pair_kernels, group_kernels, class_kernels, gram_kernels, mean_kernels, pool_kernels,
        softmax_kernels, reduce_kernels, score_kernels, table_kernels, standardize_kernels,
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


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_spills() -> None:
    check(list(report(False, TARGETS)))


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_no_spills_of_any_loss() -> None:
    check(list(report(True, TARGETS)))
