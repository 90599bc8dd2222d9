"""The compiled libraries: what each is made of and what it needs."""

from __future__ import annotations

import os
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from .environment import Missing, find_cuda, find_pybind11, find_torch, torch_has_cuda

ROOT = Path(__file__).resolve().parents[2]
CSRC = Path("csrc")
# The stable ABI of the floor release: one binary loads in every later torch.
TORCH_TARGET = "0x020b000000000000"
#: Sources of csrc/torch that the CUDA library is made of too.
SHARED_WITH_CUDA = ("class", "gram", "options", "pair", "pool", "rows", "standardize")


class Needs(NamedTuple):
    """What one target compiles and links with."""

    compile: list[str]
    link: list[str]
    facts: dict[str, str]
    nvcc: list[str] | None = None
    stub: bool = False


class Target(NamedTuple):
    """One shared library: the folders of csrc it is made of, and what they need."""

    name: str
    sources: Callable[[], list[Path]]
    needs: Callable[[str], Needs]


def sources(folder: str, suffix: str = "cpp") -> list[Path]:
    """The sources of csrc/folder, relative to the project, in a fixed order."""
    return sorted(path.relative_to(ROOT) for path in (ROOT / CSRC / folder).glob(f"*.{suffix}"))


def cuda_sources() -> list[Path]:
    shared = [CSRC / "torch" / f"{name}.cpp" for name in SHARED_WITH_CUDA]
    return [*shared, *sources("torch/cuda"), *sources("cuda"), *sources("cuda", "cu")]


def words(name: str) -> list[str]:
    return (ROOT / CSRC / name).read_text().split()


def cxx_flags() -> list[str]:
    return words("cxxflags.txt")


def cuda_archs() -> list[str] | None:
    """The targets that BLL_CUDA_ARCHS asks for instead of those of every wheel, as "90"."""
    given = os.environ.get("BLL_CUDA_ARCHS") or ""
    found = [word for word in re.split(r"[,;\s]+", given) if word]
    wrong = [word for word in found if not re.fullmatch(r"\d{2,3}", word) or int(word) < 80]
    if wrong:
        raise SystemExit(
            "BLL_CUDA_ARCHS: expected compute capabilities from 80 on, such as 80,90; "
            f"got {given!r}"
        )
    return found or None


def nvcc_flags() -> list[str]:
    flags = words("nvccflags.txt")
    archs = cuda_archs()
    if archs is None:
        return flags
    kept: list[str] = []
    for word in flags:
        if kept and kept[-1] == "-gencode":
            kept.pop()
        else:
            kept.append(word)
    for arch in archs:
        kept += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    return kept


def include(folder: Path) -> list[str]:
    # The prefix map keeps paths of the building machine out of error messages.
    return ["-isystem", str(folder), f"-fmacro-prefix-map={folder}=."]


def torch_needs(mode: str) -> Needs:
    torch, version = find_torch()
    flags = [f"-DTORCH_TARGET_VERSION={TORCH_TARGET}", *include(torch / "include")]
    # torch's own libraries are already loaded when _C is, so no run path is recorded; without
    # --no-as-needed the NEEDED entry that makes them visible to _C could be dropped.
    link = [f"-L{torch / 'lib'}", "-Wl,--no-as-needed", "-ltorch_cpu", "-Wl,--as-needed"]
    return Needs(flags, link, {"torch_version": version})


def cuda_needs(mode: str) -> Needs:
    """As `_C`, with the CUDA runtime inside and libtorch_cuda.so as a name to be found."""
    if mode == "cpu":
        raise Missing("BLL_BUILD=cpu")
    toolkit = find_cuda()
    torch = torch_needs(mode)
    if mode == "auto" and not torch_has_cuda(find_torch()[0]):
        raise Missing("this torch has no CUDA (BLL_BUILD=cuda builds for one that has)")
    # A stub stands in for libtorch_cuda.so, which this torch may lack: it only names the library.
    link = [*torch.link, "-Wl,--no-as-needed", "-ltorch_cuda", "-Wl,--as-needed"]
    link += [f"-L{toolkit.library}", "-lcudart_static", "-ldl", "-lrt", "-lpthread"]
    flags = [*torch.compile, "-DBLL_CUDA", *include(toolkit.include)]
    return Needs(flags, link, torch.facts, [toolkit.nvcc], stub=True)


def numpy_needs(mode: str) -> Needs:
    python = Path(sysconfig.get_path("include"))
    if not (python / "Python.h").is_file():
        raise Missing("Python.h not found (install the Python development headers)")
    flags = [*include(find_pybind11() / "include"), *include(python)]
    return Needs(flags, [], {"python": sysconfig.get_python_version()})


TARGETS = (
    Target("_core", lambda: [*sources("numpy"), *sources("cpu")], numpy_needs),
    Target("_C", lambda: [*sources("torch"), *sources("cpu")], torch_needs),
    Target("_C_cuda", cuda_sources, cuda_needs),
)


def required(mode: str) -> set[str]:
    """The targets whose absence is a failure."""
    names = {"_core", "_C"}
    return {"auto": set(), "none": set(), "cpu": names, "cuda": names | {"_C_cuda"}}[mode]
