"""The kernels' numbers under the host emulator, in processes of their own: a wild access ends one.

Cluster launches and what the emulator does not know (tests/cuda/emulator.h) are not shown here.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from toolkit import needs_toolkit

FOLDER = Path(__file__).parent
SUITES = sorted(FOLDER.glob("emulated_*.py"))

pytestmark = [needs_toolkit, pytest.mark.timeout(1800), pytest.mark.xdist_group("emulator")]


def run_suite(suite: Path, *arguments: str, sanitized: bool = False) -> None:
    code = (
        f"import sys, pytest; sys.path[:0] = [{str(FOLDER)!r}, {str(FOLDER.parent)!r}]; "
        f"import emulated; emulated.SANITIZED = {sanitized}; "
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', '-x', *sys.argv[1:]]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(suite), *arguments],
        cwd=FOLDER.parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_emulated(suite: Path) -> None:
    run_suite(suite)


@pytest.mark.slow
@pytest.mark.parametrize("suite", SUITES, ids=lambda path: path.stem)
def test_no_undefined_behaviour(suite: Path) -> None:
    # One order of threads is enough; suites without orders run whole.
    run_suite(suite, "-k", "not order0 and not order1", sanitized=True)
