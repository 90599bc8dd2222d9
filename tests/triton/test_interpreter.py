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
