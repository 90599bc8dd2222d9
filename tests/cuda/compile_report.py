"""What nvcc says of the kernels, for every target: registers, shared memory, spills.

    python tests/cuda/compile_report.py

The library is compiled with ninja as BLL_BUILD=cuda does, where a source changed; no GPU needed.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from native_build.environment import find_ninja
from native_build.ninja import NINJA_DIR, kernel_logs, plan, run_ninja
from native_build.targets import ROOT, nvcc_flags, sources

FLAGS = nvcc_flags()
LIBRARY = ROOT / NINJA_DIR / "_C_cuda.so"
#: Kernels that are compiled in many variants.
TEMPLATES = (
    *("pair_elements", "pair_table", "pair_groups", "pair_groups_long"),
    *("group_table", "group_table_long"),
    *("pool_planes", "pool_pixels", "class_rows", "class_table", "pooled_class"),
    *("gram_tiles", "class_means_kernel", "softmax_rows_kernel", "optim_update_kernel"),
    "standardize_kernel",
)


@dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    kernel: str
    variant: str
    target: str
    registers: int
    shared: int
    stack: int
    spills: int


def parse(log: str) -> list[Row]:
    """Every kernel of one nvcc log with -Xptxas -v."""
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)' for '(?P<target>\w+)'.*?"
        r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
        r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.S,
    )
    rows = []
    for found in pattern.finditer(log):
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        name = found["name"]
        plain = re.search(r"\d([a-z][a-z_]*_kernel)E", name)
        template = next((known for known in TEMPLATES if f"{len(known)}{known}" in name), name)
        kernel = plain[1] if plain else template
        rows.append(
            Row(
                kernel,
                name,
                found["target"],
                int(found["registers"]),
                int(shared[1]) if shared else 0,
                int(found["stack"]),
                int(found["stores"]) + int(found["loads"]),
            )
        )
    return rows


def report() -> list[Row]:
    """Compiles what changed and reads what the compiler said."""
    planned, reasons = plan("cuda")
    assert "_C_cuda" in {target.name for target, _ in planned}, reasons
    run_ninja(find_ninja(), "_C_cuda")
    logs = kernel_logs()
    assert len(logs) == len(sources("cuda", "cu"))
    return [row for log in logs for row in parse(log.read_text())]


def table(found: list[Row]) -> str:
    """Per kernel and target: variants, most registers, shared memory, spills."""
    lines = [f"{'kernel':24}{'target':8}{'variants':>9}{'registers':>10}{'shared':>8}{'spills':>8}"]
    for key in sorted({(row.kernel, row.target) for row in found}):
        same = [row for row in found if (row.kernel, row.target) == key]
        most = [max(getattr(r, f) for r in same) for f in ("registers", "shared", "spills")]
        lines.append(f"{key[0]:24}{key[1]:8}{len(same):9}{most[0]:10}{most[1]:8}{most[2]:8}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(table(report()) + "\n")
