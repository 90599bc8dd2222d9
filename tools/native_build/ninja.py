"""Compilation through ninja, so that a second build compiles only what changed."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

from .environment import Missing, find_compiler
from .targets import CSRC, ROOT, TARGETS, Needs, Target, cxx_flags, nvcc_flags

NINJA_DIR = Path("build") / f"native-{sysconfig.get_config_var('SOABI') or 'unknown'}"
STUBS = NINJA_DIR / "stubs"


def escape(text: object) -> str:
    return re.sub(r"([$ :\n])", r"$\1", str(text))


def command_line(words: list[str]) -> str:
    return shlex.join(words).replace("$", "$$")


def rules(compiler: list[str], nvcc: list[str] | None) -> list[str]:
    cxx = command_line([*compiler, *cxx_flags(), f"-I{CSRC}"])
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {escape(NINJA_DIR)}",
        f"rule cxx\n  command = {cxx} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc\n  description = compile $in",
        f"rule link\n  command = {command_line(compiler)} -shared $in -o $out $flags",
        "  description = link $out",
        f"rule stub\n  command = {command_line(compiler)} -shared -nostdlib "
        "-Wl,-soname,$soname -x c /dev/null -o $out",
        "  description = stub $out",
    ]
    if nvcc is not None:
        cuda = command_line([*nvcc, "-ccbin", *compiler[:1], *nvcc_flags(), f"-I{CSRC}"])
        lines += [
            f"rule nvcc\n  command = {cuda} -MMD -MF $out.d -c $in -o $out > $out.log 2>&1 || "
            "(grep -v 'ptxas info\\|bytes stack frame' $out.log; exit 1)",
            "  depfile = $out.d\n  deps = gcc\n  description = compile $in",
        ]
    return lines


def write_ninja(compiler: list[str], planned: list[tuple[Target, Needs]]) -> None:
    nvcc = next((needs.nvcc for _, needs in planned if needs.nvcc), None)
    lines = rules(compiler, nvcc)
    known: set[str] = set()

    def build_object(needs: Needs, source: Path) -> str:
        """The CPU kernels know neither Python nor torch: their libraries share the objects."""
        folder = "_".join(source.parent.relative_to(CSRC).parts)
        plain = folder == "cpu"
        prefix = f"cuda_{folder}" if needs.nvcc else folder
        kind = "_cu" if source.suffix == ".cu" else ""
        output = escape(NINJA_DIR / f"{prefix}_{source.stem}{kind}.o")
        if output not in known:
            known.add(output)
            rule = "nvcc" if source.suffix == ".cu" else "cxx"
            flags = "" if plain or kind else command_line(needs.compile)
            lines.append(f"build {output}: {rule} {escape(source)}\n  flags = {flags}")
        return output

    for target, needs in planned:
        objects = [build_object(needs, source) for source in target.sources()]
        library = escape(NINJA_DIR / f"{target.name}.so")
        waits = ""
        link = ["-Wl,--exclude-libs,ALL", *needs.link]
        if needs.stub:
            stub = escape(STUBS / "libtorch_cuda.so")
            lines.append(f"build {stub}: stub\n  soname = libtorch_cuda.so")
            waits = f" | {stub}"
            link.insert(0, f"-L{STUBS}")
        lines.append(f"build {library}: link {' '.join(objects)}{waits}")
        lines.append(f"  flags = {command_line(link)}")
        lines.append(f"build {target.name}: phony {library}")
    (ROOT / NINJA_DIR).mkdir(parents=True, exist_ok=True)
    (ROOT / NINJA_DIR / "build.ninja").write_text("\n".join(lines) + "\n")


def plan(mode: str) -> tuple[list[tuple[Target, Needs]], dict[str, str]]:
    """Writes the build file; what can be compiled, and why the rest cannot."""
    planned: list[tuple[Target, Needs]] = []
    reasons: dict[str, str] = {}
    compiler = find_compiler()
    for target in TARGETS:
        try:
            planned.append((target, target.needs(mode)))
        except Missing as error:
            reasons[target.name] = str(error)
    write_ninja(compiler, planned)
    return planned, reasons


def kernel_logs() -> list[Path]:
    """What nvcc said of every .cu it compiled: registers, memory, spills."""
    return sorted((ROOT / NINJA_DIR).glob("cuda_cuda_*.o.log"))


def run_ninja(ninja: str, name: str) -> Path:
    command = [ninja, "-f", str(NINJA_DIR / "build.ninja"), name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        print(output, file=sys.stderr)
        wrong = re.search(r"^.*\b(?:fatal )?error\b.*: .*$", output, re.M)
        raise Missing(f"compilation failed: {wrong.group(0) if wrong else output[-200:]}")
    return ROOT / NINJA_DIR / f"{name}.so"
