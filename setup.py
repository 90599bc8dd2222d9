"""Builds the two compiled parts of bll_kernels: `_core` (NumPy) and `_C` (torch, CPU).

BLL_BUILD=auto (default) builds what it can and says what it left out and why, cpu turns a missing
part into an error, none builds nothing. torch is located, never imported, and nothing is
downloaded or installed. Compilation runs through ninja in build/native, so that a second build
compiles only what changed.
"""

from __future__ import annotations

import datetime
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
CSRC = Path("csrc")
NINJA_DIR = Path("build") / f"native-{sysconfig.get_config_var('SOABI') or 'unknown'}"
TORCH_FLOOR = (2, 11)
# The stable ABI of the floor release: one binary loads in every later torch.
TORCH_TARGET = "0x020b000000000000"
MODES = ("auto", "cpu", "cuda", "none")
NO_TORCH_HINT = "build beside an installed torch: pip install --no-build-isolation ."


class Missing(Exception):
    """Something a target needs is not there; the message says what."""


class Needs(NamedTuple):
    """What one target compiles and links with."""

    compile: list[str]
    link: list[str]
    facts: dict[str, str]


class Target(NamedTuple):
    """One shared library: its own sources in csrc/folder, and what they need."""

    name: str
    folder: str
    needs: Callable[[], Needs]
    extension: Extension


def build_mode() -> str:
    mode = os.environ.get("BLL_BUILD") or "auto"
    if mode not in MODES:
        raise SystemExit(f"BLL_BUILD: expected one of {', '.join(MODES)}, got {mode!r}")
    if mode == "cuda":
        raise SystemExit(
            "BLL_BUILD=cuda: this version of bll-kernels has no CUDA sources; use auto, cpu or none"
        )
    return mode


def sources(folder: str) -> list[Path]:
    """The sources of csrc/folder, relative to the project, in a fixed order."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / CSRC / folder).glob("*.cpp"))


def cxx_flags() -> list[str]:
    return (ROOT / CSRC / "cxxflags.txt").read_text().split()


def find_compiler() -> list[str]:
    own = os.environ.get("CXX")
    names = [own] if own else [sysconfig.get_config_var("CXX") or "", "g++", "clang++", "c++"]
    for command in map(shlex.split, names):
        if command and shutil.which(command[0]):
            return command
    raise Missing(f"no C++ compiler found (looked for {', '.join(filter(None, names))})")


def find_ninja() -> str:
    path = shutil.which("ninja", path=sysconfig.get_path("scripts")) or shutil.which("ninja")
    if path is None:
        raise Missing("ninja not found (pip install ninja)")
    return path


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


def include(folder: Path) -> list[str]:
    # The prefix map keeps paths of the building machine out of error messages.
    return ["-isystem", str(folder), f"-fmacro-prefix-map={folder}=."]


def torch_needs() -> Needs:
    torch, version = find_torch()
    flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *include(torch / "include")]
    # torch's own libraries are already loaded when _C is, so no run path is recorded; without
    # --no-as-needed the NEEDED entry that makes them visible to _C could be dropped.
    link = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"]
    return Needs(flags, link, {"torch_version": version})


def find_pybind11() -> Path:
    spec = importlib.util.find_spec("pybind11")
    if spec is None or spec.origin is None:
        raise Missing("pybind11 not found (pip install pybind11)")
    return Path(spec.origin).parent


def numpy_needs() -> Needs:
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").is_file():
        raise Missing("Python.h not found (install the Python development headers)")
    flags = [*include(find_pybind11() / "include"), *include(python)]
    return Needs(flags, [], {"python": sysconfig.get_python_version()})


_CORE = Extension("bll_kernels._core", [], optional=True)
_C = Extension("bll_kernels._C", [], optional=True, py_limited_api=True)
TARGETS = (Target("_core", "numpy", numpy_needs, _CORE), Target("_C", "torch", torch_needs, _C))


def escape(text: object) -> str:
    return re.sub(r"([$ :\n])", r"$\1", str(text))


def write_ninja(compiler: list[str], planned: list[tuple[Target, Needs]]) -> None:
    cxx = shlex.join([*compiler, *cxx_flags(), f"-I{CSRC}"]).replace("$", "$$")
    lines = [
        "ninja_required_version = 1.5",
        f"builddir = {escape(NINJA_DIR)}",
        f"rule cxx\n  command = {cxx} $flags -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d\n  deps = gcc\n  description = compile $in",
        f"rule link\n  command = {shlex.join(compiler)} -shared $in -o $out $flags",
        "  description = link $out",
    ]

    def compile_all(folder: str, flags: str) -> list[str]:
        outputs = []
        for source in sources(folder):
            output = escape(NINJA_DIR / f"{folder}_{source.stem}.o")
            lines.append(f"build {output}: cxx {escape(source)}\n  flags = {flags}")
            outputs.append(output)
        return outputs

    kernels = compile_all("cpu", "")
    for target, needs in planned:
        own = compile_all(target.folder, shlex.join(needs.compile).replace("$", "$$"))
        library = escape(NINJA_DIR / f"{target.name}.so")
        flags = shlex.join(["-Wl,--exclude-libs,ALL", *needs.link]).replace("$", "$$")
        lines.append(f"build {library}: link {' '.join(own + kernels)}\n  flags = {flags}")
        lines.append(f"build {target.name}: phony {library}")
    (ROOT / NINJA_DIR).mkdir(parents=True, exist_ok=True)
    (ROOT / NINJA_DIR / "build.ninja").write_text("\n".join(lines) + "\n")


def run_ninja(ninja: str, name: str) -> Path:
    command = [ninja, "-f", str(NINJA_DIR / "build.ninja"), name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip()
        print(output, file=sys.stderr)
        wrong = re.search(r"^.*\b(?:fatal )?error: .*$", output, re.M)
        raise Missing(f"compilation failed: {wrong.group(0) if wrong else output[-200:]}")
    return ROOT / NINJA_DIR / f"{name}.so"


def compiler_version(compiler: list[str]) -> str:
    done = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[0] if done.stdout else shlex.join(compiler)


class Outcome:
    """What a build made, what it left out and why; the content of `_build_info.json`."""

    def __init__(self, mode: str, reason: str | None = None) -> None:
        self.libraries: dict[str, Path] = {}
        self.reasons = {target.name: reason for target in TARGETS}
        time = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self.facts = {"mode": mode, "time": time, "machine": platform.machine()}

    def write_info(self, folder: Path) -> None:
        """Writes `_build_info.json`; the reason of a target is null where it was built."""
        folder.mkdir(parents=True, exist_ok=True)
        info = {**self.facts, "targets": self.reasons}
        (folder / "_build_info.json").write_text(json.dumps(info, indent=2) + "\n")


def build_targets(mode: str) -> Outcome:
    """Compiles what can be compiled."""
    if mode == "none":
        return Outcome(mode, "BLL_BUILD=none")
    if not sys.platform.startswith("linux"):
        return Outcome(mode, f"compiled parts are for Linux only, not for {sys.platform}")
    try:
        compiler, ninja = find_compiler(), find_ninja()
    except Missing as error:
        return Outcome(mode, str(error))
    outcome = Outcome(mode)
    outcome.facts["compiler"] = compiler_version(compiler)
    outcome.facts["flags"] = " ".join(cxx_flags())
    planned: list[tuple[Target, Needs]] = []
    for target in TARGETS:
        try:
            planned.append((target, target.needs()))
        except Missing as error:
            outcome.reasons[target.name] = str(error)
    write_ninja(compiler, planned)
    for target, needs in planned:
        try:
            outcome.libraries[target.name] = run_ninja(ninja, target.name)
            outcome.facts.update(needs.facts)
        except Missing as error:
            outcome.reasons[target.name] = str(error)
    return outcome


def package_folders(command: build_py | build_ext, inplace: bool) -> list[Path]:
    """The package folders a build fills: the wheel's, and the source tree's when editable."""
    folders = [Path(command.build_lib) / "bll_kernels"]
    return [*folders, ROOT / "bll_kernels"] if inplace else folders


def discard(folder: Path) -> None:
    """Removes compiled parts of an earlier build, which would otherwise be packed or loaded."""
    for target in TARGETS:
        for path in folder.glob(f"{target.name}.*.so"):
            path.unlink()


class BuildPackage(build_py):
    """Without compiled parts, still records that there are none and why."""

    def run(self) -> None:
        """Copies the modules."""
        super().run()
        if not self.distribution.ext_modules:
            for folder in package_folders(self, self.editable_mode):
                discard(folder)
                build_targets("none").write_info(folder)


class BuildNative(build_ext):
    """Builds the shared libraries with ninja and puts them where setuptools wants them."""

    def run(self) -> None:
        """Builds, copies, and prints a line for each library."""
        mode = build_mode()
        outcome = build_targets(mode)
        for folder in package_folders(self, bool(self.inplace)):
            discard(folder)
            outcome.write_info(folder)
            for target in TARGETS:
                if target.name in outcome.libraries:
                    name = Path(self.get_ext_filename(target.extension.name)).name
                    shutil.copy2(outcome.libraries[target.name], folder / name)
        for name, reason in outcome.reasons.items():
            print(f"bll_kernels.{name}: {'built' if reason is None else 'not built: ' + reason}")
        if mode != "auto" and len(outcome.libraries) < len(TARGETS):
            raise SystemExit(f"BLL_BUILD={mode}: not everything could be built (see above)")


if __name__ == "__main__":
    setup(
        ext_modules=[] if build_mode() == "none" else [target.extension for target in TARGETS],
        cmdclass={"build_py": BuildPackage, "build_ext": BuildNative},
    )
