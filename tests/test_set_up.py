"""The scripts behind the two commands of the README, run against stand-ins for python and make."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.skipif(
    not (ROOT / "tools" / "environment.sh").exists(), reason="needs the source tree"
)

PYTHON = """#!/bin/sh
# Stands in for an environment's interpreter; what it "has" are files beside it.
here=$(dirname "$0")
case "$*" in
  *'version("torch")'*) cat "$here/torch" ;;
  *"import torch,bll_kernels.ops,bll"*) [ -e "$here/project" ] ;;
  *"import torch,pytest"*) [ -e "$here/torch" ] ;;
  *"import torch"*) [ -e "$here/torch" ] ;;
  *"pip"*"install -e"* | *"pip"*"install "*"-e .["*)
    echo "$*" >>"$here/log"
    touch "$here/project"
    [ ! -e "$here/upgrade" ] || cp "$here/upgrade" "$here/torch" ;;
  *"pip"*"install torch"*)
    echo "$*" >>"$here/log"
    echo 2.13.0 >"$here/torch" ;;
  *"pip"*"install"*) echo "$*" >>"$here/log" ;;
  -)
    if grep -q 'torch.__version__' && [ -e "$here/old" ]; then exit 1; fi ;;
esac
"""


@pytest.fixture
def tree(tmp_path):
    """A small source tree and an environment in it."""
    root = tmp_path / "tree"
    shutil.copytree(ROOT / "tools", root / "tools")
    for name in ("pyproject.toml", "setup.py", "bll_kernels/_version.py"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "csrc").mkdir()
    (root / "csrc" / "kernel.cpp").write_text("int x;\n")
    place = tmp_path / "environment" / "bin"
    place.mkdir(parents=True)
    (place / "python").write_text(PYTHON)
    (place / "python").chmod(0o755)
    return root


def environment_of(tree: Path) -> Path:
    return tree.parent / "environment" / "bin"


def run(tree: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("BLL_", "VIRTUAL_ENV"))}
    return subprocess.run(
        ["sh", "tools/environment.sh", *arguments],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, "VIRTUAL_ENV": str(tree.parent / "environment"), **variables},
    )


def log_of(tree: Path) -> list[str]:
    path = environment_of(tree) / "log"
    return path.read_text().splitlines() if path.exists() else []


def test_an_existing_torch_is_kept_and_pinned(tree):
    (environment_of(tree) / "torch").write_text("2.12.1+cu130\n")
    done = run(tree, "test")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(environment_of(tree) / "python")
    assert not any("install torch" in line for line in log_of(tree))
    pinned = (tree / "build" / "environment" / "constraints.txt").read_text()
    assert pinned == "torch==2.12.1+cu130\n"
    *pinned_lines, alone = log_of(tree)
    assert all("-c build/environment/constraints.txt" in line for line in pinned_lines)
    assert pinned_lines[0].endswith("pybind11>=2.12 torch"), "what it allows beside it counts"
    assert pinned_lines[-2].endswith("--no-build-isolation -e .[test]")
    assert "transformers" in pinned_lines[-1] and "timm" not in pinned_lines[-1]
    # Its torchvision would bring another torch.
    assert alone.endswith("install --no-deps timm>=1.0")


def test_models_to_wrap_are_for_tests_alone(tree):
    (environment_of(tree) / "torch").write_text("2.13.0\n")
    assert run(tree, "train").returncode == 0
    assert log_of(tree)[-1].endswith("--no-build-isolation -e .[train]")


def test_torch_is_installed_where_there_is_none(tree):
    done = run(tree, "train", "torch==2.13.0")
    assert done.returncode == 0, done.stderr
    assert log_of(tree)[0].endswith("install torch==2.13.0")


def test_nothing_is_done_twice_until_a_source_changes(tree):
    (environment_of(tree) / "torch").write_text("2.13.0\n")
    assert run(tree, "test").returncode == 0
    count = len(log_of(tree))
    assert run(tree, "test").returncode == 0 and len(log_of(tree)) == count
    assert run(tree, "train").returncode == 0 and len(log_of(tree)) > count, "other extras"
    count = len(log_of(tree))
    (tree / "csrc" / "kernel.cpp").write_text("int y;\n")
    assert run(tree, "test").returncode == 0 and len(log_of(tree)) > count, "a changed source"


def test_a_replaced_torch_is_an_error(tree):
    (environment_of(tree) / "torch").write_text("2.12.0\n")
    (environment_of(tree) / "upgrade").write_text("2.15.0\n")
    done = run(tree, "test")
    assert done.returncode != 0 and "torch changed from 2.12.0 to 2.15.0" in done.stderr
    assert not list((tree / "build" / "environment").glob("*.stamp"))


def test_an_old_torch_is_an_error(tree):
    (environment_of(tree) / "torch").write_text("2.6.0\n")
    (environment_of(tree) / "old").touch()
    done = run(tree, "test")
    assert done.returncode != 0 and "torch 2.6.0 is too old" in done.stderr
    assert log_of(tree) == []


def test_a_broken_virtual_environment_is_named(tree):
    done = run(tree, "test", VIRTUAL_ENV="/nowhere")
    assert done.returncode != 0 and "VIRTUAL_ENV=/nowhere holds no bin/python" in done.stderr


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"BLL_REQUIRE": "native,triton"}, "native,triton"),
        ({"BLL_BUILD": "none"}, ""),
        ({"CXX": "no-such-compiler -O2", "PATH": "EMPTY"}, ""),
        ({"PATH": "COMPILER", "CUDA_HOME": "/nowhere"}, "native,triton"),
        ({"PATH": "COMPILER", "CUDA_HOME": "TOOLKIT"}, "native,triton,cuda-compile"),
        ({"PATH": "COMPILER", "BLL_BUILD": "none"}, ""),
    ],
)
def test_required_backends(tree, tmp_path, variables, expected):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"uname": "echo Linux", "sh": "exec /bin/sh"}.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    if variables.get("PATH") == "COMPILER":
        shutil.copy(tools / "uname", tools / "g++")
    if variables.get("CUDA_HOME") == "TOOLKIT":
        (tmp_path / "toolkit" / "bin").mkdir(parents=True)
        shutil.copy(tools / "uname", tmp_path / "toolkit" / "bin" / "nvcc")
        variables = {**variables, "CUDA_HOME": str(tmp_path / "toolkit")}
    if "PATH" in variables:
        variables = {**variables, "PATH": str(tools)}
    clean = {k: v for k, v in os.environ.items() if not k.startswith("BLL_") and k != "CXX"}
    done = subprocess.run(
        ["/bin/sh", "tools/required_backends.sh"],
        cwd=tree,
        capture_output=True,
        text=True,
        timeout=60,
        env={**clean, **variables},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == expected


def test_ci_runs_the_tests_with_the_slow_ones_then_lint_and_stops_at_a_failure(tmp_path):
    (tmp_path / "make").write_text('#!/bin/sh\necho "made $*"\n[ "$1" != "$FAIL" ]\n')
    (tmp_path / "make").chmod(0o755)

    def ci(fail: str) -> tuple[int, list[str]]:
        path = f"{tmp_path}:{os.environ['PATH']}"
        done = subprocess.run(
            ["sh", str(ROOT / ".ci" / "run")],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "PATH": path, "FAIL": fail},
        )
        return done.returncode, re.findall(r"^made (.*)$", done.stdout, re.M)

    assert ci("") == (0, ["test SLOW=1", "lint"])
    assert ci("lint") == (1, ["test SLOW=1", "lint"])
    assert ci("test") == (1, ["test SLOW=1"])


def test_make_offers_the_promised_targets():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert {"demo", "test", "test-long", "lint", "bench", "clean"} <= targets
    for target in sorted(targets):
        done = subprocess.run(
            ["make", "-n", target], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
