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

from bll_kernels.backends.triton import classes, gram, means, pair, pool, softmax, standardize
from bll_kernels.backends.triton.launch import Launch, recording
from bll_kernels.families import FORMULAS
from bll_kernels.spec import LOSSES, POOLS

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
    kept: int
    widest_access: int

    @property
    def spilled(self) -> bool:
        """Whether values wait in memory; predicates may, see `stack_accesses`."""
        return self.spills > 0 or self.stack > 8 * self.kept


def _type_name(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        names = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
        names |= {
            "torch.uint8": "u8",
            "torch.int64": "i64",
            "torch.int32": "i32",
            "torch.float64": "fp64",
        }
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


def stack_accesses(code: str) -> tuple[int, int]:
    """Accesses to the stack that move values, and words of it that only ever hold predicates.

    ptxas 12.8, which Triton 3.6 brings, packs the predicates of a loop into a word of memory
    (P2R and STL before it, LDL behind it), with registers to spare, where that lets one more
    program onto a multiprocessor. The loop itself does not touch it.
    """
    packed: set[str] = set()  # registers whose last writer packed predicates
    spills, slots = 0, set()
    for operation, operands in re.findall(r"\*/\s+(?:@!?U?P\w+ )?([A-Z][\w.]*) ([^;]*);", code):
        name, words = operation.split(".")[0], re.findall(r"\[[^]]*\]|\w+", operands)
        if name == "STL" and words[1] in packed:
            slots.add(words[0])
        elif name == "STL" or (name == "LDL" and words[1] not in slots):
            spills += 1
        elif name == "P2R":
            packed.add(words[0])
            continue
        if words:
            packed.discard(words[0])
    return spills, len(slots)


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
    widths = re.findall(r"\b(?:LDG|STG)[A-Z0-9.]*?\.(64|128)\b", code)
    widest = max((int(width) for width in widths), default=32)
    spills, kept = stack_accesses(code)
    return Row(
        case, launch.kernel.__name__, target, launch.options["num_warps"], int(found[1]),
        compiled.metadata.shared, int(found[2]), spills, kept, widest,
    )  # fmt: skip


def _launches(function: Callable[..., Any], *arguments: Any) -> list[Launch]:
    with recording() as found:
        function(*arguments)
    return found


Cases = Iterator[tuple[str, list[Launch]]]


def _operands(dtype: torch.dtype, family: str, width: int) -> tuple[torch.Tensor, ...]:
    inner = (2, width) if FORMULAS[family].planes == 2 else (width,)
    a, table = torch.zeros(64, *inner, dtype=dtype), torch.zeros(10, *inner, dtype=dtype)
    return a, table, torch.zeros(64, dtype=torch.int64), torch.ones(64)


def pair_cases(dtype: torch.dtype, loss: str, tables: bool = True) -> Cases:
    """Dense and class-table messages of every family, value and all gradients."""
    both, following = pair.pair_loss_value_and_grad, pair.pair_loss_next
    for family in FORMULAS:
        for group in (4, 4096, 8192) if family == "categorical" else (1,):
            a, table, labels, weight = _operands(dtype, family, max(group, 1024))
            options = (family, group, 0.5, loss, 1.5, "batchmean", True, True)
            name = f"{family} {loss}" + (f" {group}" if group > 1 else "")
            yield f"{name} dense", _launches(both, a, a.clone(), None, None, *options)
            mean = (*options, 0.25, torch.bfloat16 if tables else torch.float8_e4m3fn)
            yield f"{name} next dense", _launches(following, a, a.clone(), None, None, *mean)
            if tables:
                yield f"{name} table", _launches(both, a, table, labels, weight, *options)
                given = (a, table, labels, weight, *mean)
                yield f"{name} next table", _launches(following, *given)
            if tables and group == 1:
                a, table, labels, weight = _operands(dtype, family, 2)
                yield f"{name} narrow table", _launches(both, a, table, labels, weight, *options)


def class_cases(dtype: torch.dtype) -> Cases:
    """The class loss of every family, value and all gradients."""
    for family in FORMULAS:
        a, table, labels, weight = _operands(dtype, family, 1024)
        options = (family, 64, 0.5, False, 1.5, "batchmean", True, True, True)
        run = classes.class_loss_value_and_grad
        yield f"class {family}", _launches(run, a, table, labels, torch.zeros(10), weight, *options)


def gram_cases(dtype: torch.dtype) -> Cases:
    """The Gram loss with labels and with vectors, and class means with their gradient."""
    x, labels = torch.zeros(64, 1024, dtype=dtype), torch.zeros(64, dtype=torch.int64)
    run, options = gram.gram_loss_value_and_grad, (1.0, -0.5)
    yield "gram labels", _launches(run, x, labels, None, None, *options, True, "batchmean")
    yield "gram vectors", _launches(run, x, None, x, None, *options, False, "batchmean")
    for rows in (64, 1024):  # few sections and many
        given = x.new_zeros(rows, 1024), labels.new_zeros(rows)
        yield f"class means of {rows}", _launches(means.class_means, *given, 10)
    counts = torch.zeros(10, dtype=torch.int64)
    grad = torch.zeros(10, 1024)
    yield "class means back", _launches(means.class_means_backward, grad, labels, counts)


def softmax_cases(dtype: torch.dtype) -> Cases:
    """Rows of scores of a few tiles, in place and into another dtype."""
    scores, labels = torch.zeros(64, 32_000), torch.zeros(64, dtype=torch.int64)
    offset, weight = torch.zeros(32_000), torch.zeros(64)
    run, slopes = softmax.softmax_rows, torch.zeros(64, 32_000, dtype=dtype)
    yield "softmax", _launches(run, scores, labels, offset, weight, slopes)


def pool_cases(dtype: torch.dtype) -> Cases:
    """Pooling of both memory layouts, forward and backward."""
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.zeros(8, 64, 32, 32, dtype=dtype).to(memory_format=memory)
        name = "nhwc" if memory == torch.channels_last else "nchw"
        for kind in POOLS:
            yield f"pool {kind} {name}", _launches(pool.grid_pool, x, kind, 4)
            grad = torch.zeros(8, 64 * 16)
            yield f"pool {kind} {name} back", _launches(pool.grid_pool_backward, grad, x, kind, 4)


def standardize_cases(_: torch.dtype) -> Cases:
    """Standardised channels of one number a row, of cells, and of more cells than a tile.

    Few rows take one launch, many rows two.
    """
    run, back = standardize.standardize_channels, standardize.standardize_channels_backward
    for cells in (1, 16, 400):
        for rows in (64, 2048):
            x, scale = torch.zeros(rows, 32 * cells), torch.zeros(32)
            name = f"standardize {rows} x {cells}"
            yield name, _launches(run, x, 32, 1e-5)
            yield f"{name} back", _launches(back, x, x, scale)


#: What is compiled on every commit: dtype, loss, and whether with class tables.
PART = (("bf16", "kl_full", True), ("fp32", "evidence", False))


def cases(full: bool) -> Cases:
    """What the ops launch: every dtype and loss, or without `full` a part of them."""
    pairs = [(name, loss, True) for name in DTYPES for loss in LOSSES] if full else PART
    for name, loss, tables in pairs:
        made = pair_cases(DTYPES[name], loss, tables)
        yield from ((f"{name} {case}", found) for case, found in made)
    for name in DTYPES if full else ("bf16",):
        for make in (class_cases, gram_cases, softmax_cases, pool_cases, standardize_cases):
            yield from ((f"{name} {case}", found) for case, found in make(DTYPES[name]))


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
    parser.add_argument(
        "--all", action="store_true", help="every dtype and loss, not a part of them"
    )
    options = parser.parse_args()
    targets = tuple(int(word) for word in options.targets.split(","))
    fields = list(Row.__dataclass_fields__)
    sys.stdout.write("| " + " | ".join(fields) + " |\n|" + " --- |" * len(fields) + "\n")
    spilled = False
    for row in report(options.all, targets):
        spilled |= row.spilled
        sys.stdout.write("| " + " | ".join(str(getattr(row, f)) for f in fields) + " |\n")
        sys.stdout.flush()
    return int(spilled)


if __name__ == "__main__":
    sys.exit(main())
