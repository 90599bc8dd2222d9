"""Every example runs, and reaches what it shows."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

EXPECTED = {
    "bare_op.py": (r"gradients differ by (\S+) of", lambda x: x < 1e-5),
    "pipelined.py": (r"accuracy (\S+) %", lambda x: x > 60),
    "resnet.py": (r"accuracy (\S+) %", lambda x: x > 90),
    "reversal_ranks.py": (r"test accuracy (\S+) %", lambda x: x > 90),
    "sequential.py": (r"test accuracy (\S+) %", lambda x: x > 90),
    # Four blocks and four classes: 5.5 is chance.
    "trainer.py": (r"evaluation loss (\S+)", lambda x: x < 3.0),
    "transformer.py": (r"test accuracy (\S+) %", lambda x: x > 95),
    "with_lightning.py": (r"test accuracy (\S+) %", lambda x: x > 85),
}


def test_every_example_is_listed():
    assert sorted(EXPECTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))


#: What an example needs beside the extra `test`.
NEEDS = {
    "trainer.py": ("transformers", "accelerate"),
    "with_lightning.py": ("pytorch_lightning",),
}
REQUIRED = "models" in os.environ.get("BLL_REQUIRE", "").split(",")

#: Examples of at most ten lines of code below the imports.
SHORT = ("bare_op.py", "pipelined.py", "resnet.py", "trainer.py")


@pytest.mark.parametrize("name", SHORT)
def test_short_examples_are_short(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    assert ast.get_docstring(tree)
    lines = {
        line
        for statement in tree.body[1:]
        if not isinstance(statement, (ast.Import, ast.ImportFrom))
        for node in ast.walk(statement)
        if hasattr(node, "lineno")
        for line in (node.lineno, node.end_lineno)
    }
    assert len(lines) <= 10


#: Examples that torchrun starts.
ON_RANKS = {
    "reversal_ranks.py": [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        "4",
        "--rdzv-backend",
        "c10d",
        "--rdzv-endpoint",
        "127.0.0.1:0",
        "--local-addr",
        "127.0.0.1",
    ]
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path):
    missing = [package for package in NEEDS.get(name, ()) if find_spec(package) is None]
    if missing and REQUIRED:
        pytest.fail(f"BLL_REQUIRE asks for models, and {', '.join(missing)} is not installed")
    if missing:
        pytest.skip(f"{', '.join(missing)} is not installed")
    run = subprocess.run(
        [sys.executable, *ON_RANKS.get(name, []), str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    assert run.returncode == 0, run.stderr
    pattern, is_good = EXPECTED[name]
    found = re.search(pattern, run.stdout)
    assert found is not None, run.stdout
    assert is_good(float(found.group(1))), run.stdout
