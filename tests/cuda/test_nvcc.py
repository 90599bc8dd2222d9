"""What the compiler says of the kernels, for every target: no spills, few enough registers.

All of them take minutes, so `make test` compiles small sources only; `make test SLOW=1`, which CI
runs, builds the whole library.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from compile_report import FLAGS, LIBRARY, TEMPLATES, Row, parse, report
from emulator_build import CSRC, ROOT, sources
from toolkit import find_cuda, needs_toolkit

TARGETS = ("sm_80", "sm_90", "sm_100")

#: Most registers a thread may take, by kernel: what its launch bounds leave it.
REGISTERS = dict.fromkeys(TEMPLATES, 128) | dict.fromkeys(
    ("pair_groups_long", "group_table_long"), 255
)
OTHERS = 40

pytestmark = [needs_toolkit, pytest.mark.timeout(3600), pytest.mark.xdist_group("nvcc")]


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return report()


@pytest.mark.slow
def test_every_target_has_every_kernel(rows: list[Row]) -> None:
    assert {row.target for row in rows} == {*TARGETS}
    variants = {frozenset(r.variant for r in rows if r.target == target) for target in TARGETS}
    assert len(variants) == 1
    assert {row.kernel for row in rows} >= {*TEMPLATES, "sum_all_kernel", "rank_kernel"}


@pytest.mark.slow
def test_no_spills(rows: list[Row]) -> None:
    for row in rows:
        assert row.stack == 0 and row.spills == 0, row
        assert row.registers <= REGISTERS.get(row.kernel, OTHERS), row


@pytest.mark.slow
def test_the_binary_asks_for_stable_symbols_only(rows: list[Row]) -> None:
    """One binary for every torch with CUDA: no C++ symbol of torch, no CUDA library but by name."""
    if shutil.which("nm") is None or shutil.which("readelf") is None:
        pytest.skip("binutils are missing")
    asked = subprocess.run(["nm", "-D", "-u", LIBRARY], capture_output=True, text=True, check=True)
    symbols = {line.split()[-1] for line in asked.stdout.splitlines()}
    of_torch = {name for name in symbols if re.match(r"(aoti_)?torch_", name)}
    assert "aoti_torch_get_current_cuda_stream" in of_torch
    system = re.compile(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_|^(_ITM_|__gmon_start__|__cxa_finalize)")
    assert not {name for name in symbols - of_torch if not system.search(name)}
    dynamic = subprocess.run(["readelf", "-d", LIBRARY], capture_output=True, text=True, check=True)
    needed = set(re.findall(r"NEEDED.*\[(.*)\]", dynamic.stdout))
    assert needed >= {"libtorch_cpu.so", "libtorch_cuda.so"}
    assert not any("cudart" in name for name in needed)
    assert "RPATH" not in dynamic.stdout and "RUNPATH" not in dynamic.stdout
    assert str(ROOT).encode() not in LIBRARY.read_bytes()


@pytest.mark.slow
def test_a_torch_without_cuda_refuses_the_binary(rows: list[Row]) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    with pytest.raises(OSError, match=r"libtorch_cuda\.so"):
        ctypes.CDLL(str(LIBRARY))


def test_small_sources_pass_the_gate(tmp_path: Path) -> None:
    for name in ("reduce", "labels"):
        source = ROOT / CSRC / "cuda" / f"{name}.cu"
        command = [find_cuda().nvcc, *FLAGS, f"-I{ROOT / CSRC}", "-c", str(source)]
        done = subprocess.run(
            [*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found = parse(done.stdout + done.stderr)
        assert {row.target for row in found} == {*TARGETS}
        assert all(row.stack == 0 and row.spills == 0 for row in found)
        assert all(row.registers <= OTHERS for row in found)


def test_the_gate_detects(tmp_path: Path) -> None:
    """A kernel that needs more registers than it may have does not compile, and the table says."""
    source = tmp_path / "spills.cu"
    lines = "\n".join(f"  float x{i} = in[{i}] * in[{i + 1}];" for i in range(90))
    total = " + ".join(f"x{i} * in[{i}]" for i in range(90))
    source.write_text(
        "__global__ void __launch_bounds__(1024, 2) spills(volatile float* in, float* out) {\n"
        f"{lines}\n  out[threadIdx.x] = {total};\n}}\n"
    )
    command = [find_cuda().nvcc, *FLAGS, "-c", str(source), "-o", str(tmp_path / "x.o")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "spilled to local memory" in done.stdout + done.stderr
    spilled = parse(done.stdout + done.stderr)
    assert spilled and spilled[0].spills > 0


def test_sources_compile_alone_and_know_no_torch(tmp_path: Path) -> None:
    """With the two flags that anybody would give."""
    source = ROOT / CSRC / "cuda" / "reduce.cu"
    command = [find_cuda().nvcc, "-std=c++17", f"-I{ROOT / CSRC}", "-c", str(source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "x.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for path in [*sources("cuda", "cu"), *sources("cuda", "cuh"), *sources("cuda", "h")]:
        assert "torch" not in (ROOT / path).read_text(), path
