"""The kernels' numbers, in Triton's interpreter: processes that set it before the first import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REQUIRED

from bll_kernels.backends import triton as triton_backend

if triton_backend.MISSING is not None and "triton" not in REQUIRED:
    pytest.skip(f"triton: {triton_backend.MISSING}", allow_module_level=True)

FOLDER = Path(__file__).parent
SUITES = sorted(FOLDER.glob("interpreted_*.py"))


def test_there_are_suites() -> None:
    assert SUITES


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_interpreted(suite: Path) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    environment.pop("BLL_REQUIRE", None)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-x", str(suite)],
        cwd=FOLDER.parent.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_loops_are_right_with_and_without_the_repair_of_triton_3_6() -> None:
    code = (
        "import torch, triton, bll_kernels\n"
        "from bll_kernels.backends import triton as backend\n"
        "x, labels = torch.arange(600.0).view(300, 2), torch.arange(300) % 3\n"
        "def means():\n"
        "    with bll_kernels.use_backend('triton'):\n"
        "        return bll_kernels.class_means(x, labels, 3)[0]\n"
        "expected = torch.stack([x[c::3].mean(0) for c in range(3)])\n"
        "old = tuple(map(int, triton.__version__.split('.')[:2])) < (3, 7)\n"
        "assert backend.REPAIRS_LOOPS is old\n"
        "torch.testing.assert_close(means(), expected)\n"
        "from bll_kernels.backends.triton import interpreter_triton\n"
        "for _ in range(2):\n"
        "    interpreter_triton.repair()\n"
        "    torch.testing.assert_close(means(), expected)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
