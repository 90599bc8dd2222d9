"""Every Triton kernel compiled ahead of time, no GPU needed: registers, shared memory, spills.

    python -m bench.compile_report [--targets 80,90,100] [--all]

What is compiled is what the ops launch: they run on CPU tensors with a recorder in place of the
launcher. ptxas and cuobjdump come from Triton's wheel.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from bll_kernels.backends.triton.launch import Launch, recording
from bll_kernels.families import FORMULAS
from bll_kernels.spec import LOSSES

TARGETS = (80, 90, 100)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_TOOL = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Row:
    """One compiled kernel."""

    case: str
    kernel: str
    target: int
    warps: int
    registers: int
    shared: int
    stack: int
    spills: int
    widest_access: int


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        names = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
        names |= {"torch.int64": "i64", "torch.int32": "i32", "torch.float64": "fp64"}
        return "*" + names[str(value.dtype)]
    if isinstance(value, float):
        return "fp32"
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def source(launch: Launch) -> ASTSource:
    """The launch as Triton's own launcher would specialise it."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        whole = isinstance(value, int) and not isinstance(value, bool)
        free = whole and not parameter.do_not_specialize
        if parameter.is_constexpr or value is None or (free and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
            continue
        signature[parameter.name] = _type_name(value)
        if isinstance(value, torch.Tensor) or (free and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    return ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)


def compile_launch(case: str, launch: Launch, target: int) -> Row:
    """Compile for one target and read the machine code's resources."""
    options = dict(launch.options)
    compiled = triton_compile(source(launch), target=GPUTarget("cuda", target, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(compiled.asm["cubin"])
        usage = subprocess.run(
            [_TOOL, "-res-usage", path], capture_output=True, text=True, check=True
        )
        code = subprocess.run(
            [_TOOL, "-sass", path], capture_output=True, text=True, check=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage.stdout + usage.stderr)
    if found is None:
        raise RuntimeError(f"cuobjdump told no resource usage: {usage.stdout + usage.stderr}")
    widths = re.findall(r"\b(?:LDG|STG)\.[A-Z0-9.]*?(32|64|128|U16|U8)?\b", code)
    widest = max((int(w) for w in re.findall(r"\b(?:LDG|STG)[A-Z0-9.]*?\.(64|128)\b", code)),
                 default=32 if widths else 0)  # fmt: skip
    spills = len(re.findall(r"\b(?:LDL|STL)\b", code))
    return Row(
        case, launch.kernel.__name__, target, launch.options["num_warps"], int(found[1]),
        compiled.metadata.shared, int(found[2]), spills, widest,
    )  # fmt: skip


def _launches(function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    with recording() as found:
        function(*arguments)
    return found


def pair_cases(dtype: torch.dtype, losses: tuple[str, ...]) -> Iterator[tuple[str, list[Launch]]]:
    """Dense and class-table messages of every family, value and all gradients."""
    from bll_kernels.backends.triton import pair

    for family in pair.ELEMENT_FAMILIES:
        inner = (2, 1024) if FORMULAS[family].planes == 2 else (1024,)
        a, table = torch.zeros(64, *inner, dtype=dtype), torch.zeros(10, *inner, dtype=dtype)
        labels, weight = torch.zeros(64, dtype=torch.int64), torch.ones(64)
        for loss in losses:
            options = (family, 64, 0.5, loss, 1.5, "batchmean")
            both = pair.pair_loss_value_and_grad
            yield (
                f"{family} {loss} dense",
                _launches(both, a, a.clone(), None, None, *options, True, True),
            )
            yield (
                f"{family} {loss} table",
                _launches(both, a, table, labels, weight, *options, True, True),
            )


def cases(full: bool) -> Iterator[tuple[str, list[Launch]]]:
    """What the ops launch, over dtypes and options; without `full` a part that takes a minute."""
    for name, dtype in DTYPES.items():
        losses = LOSSES if full else ("kl", "evidence")
        for case, launches in pair_cases(dtype, losses):
            yield f"{name} {case}", launches


def report(full: bool, targets: tuple[int, ...]) -> Iterator[Row]:
    """Compile every distinct launch for every target."""
    seen = set()
    for case, launches in cases(full):
        for launch in launches:
            key = source(launch).hash() + str(sorted(launch.options.items()))
            if key in seen:
                continue
            seen.add(key)
            for target in targets:
                yield compile_launch(case, launch, target)


def main() -> int:
    """Print the table; exit status 1 if a kernel spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)))
    parser.add_argument("--all", action="store_true", help="every loss, not a part of them")
    options = parser.parse_args()
    targets = tuple(int(word) for word in options.targets.split(","))
    fields = list(Row.__dataclass_fields__)
    sys.stdout.write("| " + " | ".join(fields) + " |\n|" + " --- |" * len(fields) + "\n")
    spilled = False
    for row in report(options.all, targets):
        spilled |= row.stack > 0 or row.spills > 0
        sys.stdout.write("| " + " | ".join(str(getattr(row, f)) for f in fields) + " |\n")
        sys.stdout.flush()
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
