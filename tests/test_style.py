"""The house rules that a machine can check: layering, file length, environment variables."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PYTHON = sorted([*(ROOT / "bll_kernels").rglob("*.py"), *(ROOT / "python").rglob("*.py")])
NATIVE = sorted(p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"})
TESTS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


def test_there_is_something_to_check():
    assert len(PYTHON) > 20
    assert len(NATIVE) > 10
    assert len(TESTS) > 10


@pytest.mark.parametrize("path", PYTHON + NATIVE, ids=_name)
def test_source_files_stay_small(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 300, f"{_name(path)} has {lines} lines"


@pytest.mark.parametrize("path", TESTS, ids=_name)
def test_test_files_stay_readable(path):
    lines = len(path.read_text().splitlines())
    assert lines <= 400, f"{_name(path)} has {lines} lines"


@pytest.mark.parametrize("path", PYTHON, ids=_name)
def test_imports_run_in_one_direction(path):
    imports = _imports(path)
    if path.is_relative_to(ROOT / "bll_kernels"):
        assert "bll" not in imports
        allowed = {"torch", "numpy", "bll_kernels"}
        if path.stem.endswith(("_triton", "_kernels")):
            allowed.add("triton")  # imported at the first call only
        assert imports - allowed <= set(_standard_library()), imports
    assert not imports & {"torchvision", "timm", "transformers"}


def _standard_library() -> frozenset[str]:
    import sys

    return sys.stdlib_module_names


@pytest.mark.parametrize("path", NATIVE, ids=_name)
def test_torch_headers_stay_in_csrc_torch(path):
    includes = re.findall(r"#\s*include\s*[<\"]([^>\"]+)", path.read_text())
    knows_torch = [i for i in includes if i.startswith(("torch/", "ATen/", "c10/"))]
    assert not knows_torch or "torch" in path.relative_to(ROOT).parts
    knows_python = [i for i in includes if i.startswith(("pybind11/", "Python.h"))]
    assert not knows_python or path.parent.name == "numpy"


def test_three_environment_variables_in_all():
    read = set()
    build = sorted((ROOT / "tools" / "native_build").glob("*.py"))
    for path in [*PYTHON, *build, ROOT / "setup.py", ROOT / "tests" / "conftest.py"]:
        text = path.read_text()
        read |= set(re.findall(r"""environ(?:\.get\(|\[)\s*["']([A-Z0-9_]+)["']""", text))
        read |= set(re.findall(r"""getenv\(\s*["']([A-Z0-9_]+)["']""", text))
    known = {"BLL_BUILD", "BLL_CUDA_ARCHS", "BLL_REQUIRE"}
    assert {name for name in read if name.startswith("BLL")} == known


def test_no_unsafe_loading():
    for path in PYTHON:
        text = path.read_text()
        assert "pickle.load" not in text, _name(path)
        assert "weights_only=False" not in text, _name(path)
        assert not re.search(r"(?<![\w.])(eval|exec)\(", text), _name(path)


def test_no_data_or_binaries_are_tracked():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: nothing is tracked")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    endings = (".so", ".gz", ".xz", ".bin", ".pt", ".safetensors", ".npz", ".npy")
    assert not [name for name in listed if name.endswith(endings)]
    large = [n for n in listed if n and (ROOT / n).is_file() and (ROOT / n).stat().st_size > 1e6]
    assert not large
