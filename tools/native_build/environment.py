"""What the build finds on a machine: compilers, ninja, torch, pybind11. Nothing is imported."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

TORCH_FLOOR = (2, 11)
NO_TORCH_HINT = "build beside an installed torch: pip install --no-build-isolation ."


class Missing(Exception):
    """Something a target needs is not there; the message says what."""


class Toolkit(NamedTuple):
    """A CUDA toolkit: its compiler, its headers, the folder of its static runtime."""

    nvcc: str
    include: Path
    library: Path


def find_compiler() -> list[str]:
    own = os.environ.get("CXX")
    names = [own] if own else [sysconfig.get_config_var("CXX") or "", "g++", "clang++", "c++"]
    for command in map(shlex.split, names):
        if command and shutil.which(command[0]):
            return command
    raise Missing(f"no C++ compiler found (looked for {', '.join(filter(None, names))})")


def version_of(command: list[str]) -> str:
    """What a compiler says of itself in one line."""
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    named = [line for line in lines if "release" in line]
    return (named or lines or [shlex.join(command)])[0]


def find_ninja() -> str:
    path = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
    if path is None:
        raise Missing("ninja not found (pip install ninja)")
    return path


def find_cuda() -> Toolkit:
    """The toolkit of the nvcc in CUDA_HOME, on the path or in the usual place."""
    home = os.environ.get("CUDA_HOME") or "/usr/local/cuda"
    nvcc = shutil.which("nvcc", path=f"{home}/bin") or shutil.which("nvcc")
    if nvcc is None:
        raise Missing("nvcc not found (set CUDA_HOME)")
    root = Path(nvcc).resolve().parent.parent
    roots = [Path(home), root, *root.glob("targets/*-linux")]
    for folder in roots:
        for library in (folder / "lib64", folder / "lib"):
            header = folder / "include/cuda_runtime.h"
            if (library / "libcudart_static.a").is_file() and header.is_file():
                return Toolkit(nvcc, folder / "include", library)
    raise Missing(f"the CUDA toolkit of {nvcc} has no libcudart_static.a beside cuda_runtime.h")


def site_folders() -> list[Path]:
    """Where the target environment keeps its packages.

    pip's isolated build hides them from sys.path but runs the target's own interpreter.
    """
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    config = Path(sys.prefix) / "pyvenv.cfg"
    shares = config.is_file() and re.search(
        r"^include-system-site-packages\s*=\s*true", config.read_text(), re.I | re.M
    )
    if shares or sys.prefix == sys.base_prefix:
        folders += site.getsitepackages([sys.base_prefix])
        folders.append(site.getusersitepackages())
    return [Path(folder) for folder in dict.fromkeys(folders)]


def find_torch() -> tuple[Path, str]:
    """The folder of the torch to build for and its version, without importing it."""
    spec = importlib.util.find_spec("torch")
    found = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    found += [folder / "torch" for folder in site_folders()]
    for torch in found:
        if not (torch / "version.py").is_file():
            continue
        match = re.search(r"__version__\s*=\s*['\"]([^'\"]+)", (torch / "version.py").read_text())
        version = match.group(1) if match else "unknown"
        numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        if numbers < TORCH_FLOOR:
            floor = ".".join(map(str, TORCH_FLOOR))
            raise Missing(f"torch {version} is too old (needs >= {floor})")
        if not (torch / "include/torch/csrc/stable/library.h").is_file():
            raise Missing(f"torch {version} comes without its C++ headers")
        return torch, version
    raise Missing(f"torch not found; {NO_TORCH_HINT}")


def torch_has_cuda(torch: Path) -> bool:
    return (torch / "lib/libtorch_cuda.so").is_file()


def find_pybind11() -> Path:
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        raise Missing("pybind11 not found (pip install pybind11)")
    return Path(spec.origin).parent
