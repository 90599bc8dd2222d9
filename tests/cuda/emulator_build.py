"""Builds the CUDA sources and their binding for the host, under the emulator.

    python tests/cuda/emulator_build.py [--sanitize]

The library registers the ops of the namespace `bll_emulated` for CPU tensors. It is compiled with
ninja in build/, and again only where a source changed.
"""

from __future__ import annotations

import fcntl
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from native_build.environment import find_compiler, find_cuda, find_ninja  # noqa: E402
from native_build.ninja import command_line, escape  # noqa: E402
from native_build.targets import (  # noqa: E402
    CSRC,
    SHARED_WITH_CUDA,
    include,
    sources,
    torch_needs,
)

HERE = Path("tests/cuda")
#: What most sources include, compiled once: headers of the toolkit, of torch and of C++.
PREFIX = HERE / "emulator_prefix.h"
FLAGS = [
    *("-std=c++20", "-O1", "-g0", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast"),
    *("-fno-math-errno", "-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Werror"),
    *("-DBLL_HOST_EMULATOR", "-DBLL_CUDA", "-DBLL_OPS=bll_emulated", "-DBLL_DISPATCH_KEY=CPU"),
]
SANITIZE = [
    *("-fsanitize=undefined", "-fno-sanitize-recover=all"),
    # The sanitizer's branches mislead these warnings.
    *("-Wno-maybe-uninitialized", "-Wno-clobbered"),
]


def emulated_sources() -> list[Path]:
    """The kernels, their doors and their binding, with an emulated device beneath."""
    shared = [CSRC / "torch" / f"{name}.cpp" for name in SHARED_WITH_CUDA]
    own = [path for path in sources("torch/cuda") if path.name != "device.cpp"]
    return [*sources("cuda", "cu"), *sources("cuda"), *shared, *own, HERE / "emulated_device.cpp"]


def build(sanitize: bool = False) -> Path:
    """Compiles what changed and returns the library."""
    compiler, ninja = find_compiler(), find_ninja()
    torch = torch_needs("auto")
    name = "emulator-sanitized" if sanitize else "emulator"
    folder = Path("build") / f"{name}-{sysconfig.get_config_var('SOABI') or 'unknown'}"
    extra = SANITIZE if sanitize else []
    flags = [*FLAGS, *extra, *torch.compile, *include(find_cuda().include)]
    cxx = command_line([*compiler, *flags, f"-I{CSRC}", f"-I{HERE}"])
    header = folder / PREFIX.name
    link = command_line([*extra, "-Wl,--exclude-libs,ALL", *torch.link])
    lines = [
        f"builddir = {escape(folder)}",
        f"rule prefix\n  command = {cxx} -x c++-header $in -o $out",
        f"build {escape(header)}.gch: prefix {escape(PREFIX)}",
        # Without the compiled header, the name in the build folder names nothing: it must be there.
        f"rule cxx\n  command = {cxx} -include {escape(header)} -Winvalid-pch "
        "-MMD -MF $out.d -x c++ -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc",
        f"rule link\n  command = {command_line(compiler)} -shared $in -o $out {link}",
    ]
    objects = []
    for source in emulated_sources():
        objects.append(escape(folder / f"{'_'.join(source.with_suffix('').parts)}.o"))
        lines.append(f"build {objects[-1]}: cxx {escape(source)} | {escape(header)}.gch")
    library = folder / "emulated.so"
    lines.append(f"build {escape(library)}: link {' '.join(objects)}")
    (ROOT / folder).mkdir(parents=True, exist_ok=True)
    command = [ninja, "-f", str(folder / "build.ninja")]
    # Two at a time would spoil what ninja knows of the folder, and compile everything again.
    with (ROOT / folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (ROOT / folder / "build.ninja").write_text("\n".join(lines) + "\n")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{done.stdout}{done.stderr}")
    return ROOT / library


if __name__ == "__main__":
    print(build("--sanitize" in sys.argv[1:]))
