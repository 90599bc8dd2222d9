"""Builds the compiled parts of bll_kernels: `_core` (NumPy), `_C` (torch, CPU), `_C_cuda`.

BLL_BUILD=auto (default) builds what it can and says what it left out and why: `_C_cuda` where it
finds nvcc and a torch with CUDA. cpu turns a missing `_core` or `_C` into an error; cuda a missing
`_C_cuda` too, and builds it with a CPU torch as well (the binary is for any torch with CUDA). none
builds nothing. BLL_CUDA_ARCHS=90 (or 80,90) compiles `_C_cuda` for these compute capabilities
alone, in a fraction of the time, instead of for those of csrc/nvccflags.txt. torch is located,
never imported, and nothing is downloaded or installed. Compilation runs through ninja in
build/native (tools/native_build).
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
# A build front end need not put the project on the module path.
sys.path.insert(0, str(ROOT / "tools"))

from native_build.environment import (  # noqa: E402
    Missing,
    find_compiler,
    find_ninja,
    find_pybind11,
    find_torch,
    version_of,
)
from native_build.ninja import plan, run_ninja  # noqa: E402
from native_build.targets import (  # noqa: E402
    TARGETS,
    cxx_flags,
    nvcc_flags,
    required,
    sources,
)

__all__ = ["TARGETS", "Missing", "find_pybind11", "find_torch", "required", "sources"]

MODES = ("auto", "cpu", "cuda", "none")
EXTENSIONS = {
    "_core": Extension("bll_kernels._core", [], optional=True),
    "_C": Extension("bll_kernels._C", [], optional=True, py_limited_api=True),
    "_C_cuda": Extension("bll_kernels._C_cuda", [], optional=True, py_limited_api=True),
}


def build_mode() -> str:
    mode = os.environ.get("BLL_BUILD") or "auto"
    if mode not in MODES:
        raise SystemExit(f"BLL_BUILD: expected one of {', '.join(MODES)}, got {mode!r}")
    return mode


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
    outcome.facts["compiler"] = version_of(compiler)
    outcome.facts["flags"] = " ".join(cxx_flags())
    planned, missing = plan(mode)
    outcome.reasons.update(missing)
    for target, needs in planned:
        try:
            outcome.libraries[target.name] = run_ninja(ninja, target.name)
            outcome.facts.update(needs.facts)
            if needs.nvcc:
                outcome.facts["nvcc"] = version_of(needs.nvcc)
                outcome.facts["nvcc_flags"] = " ".join(nvcc_flags())
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
            for name, library in outcome.libraries.items():
                shutil.copy2(
                    library, folder / Path(self.get_ext_filename(EXTENSIONS[name].name)).name
                )
        for name, reason in outcome.reasons.items():
            print(f"bll_kernels.{name}: {'built' if reason is None else 'not built: ' + reason}")
        if required(mode) - outcome.libraries.keys():
            raise SystemExit(f"BLL_BUILD={mode}: not everything could be built (see above)")


if __name__ == "__main__":
    setup(
        ext_modules=[] if build_mode() == "none" else list(EXTENSIONS.values()),
        cmdclass={"build_py": BuildPackage, "build_ext": BuildNative},
    )
