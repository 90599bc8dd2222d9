"""Runs a suite of another folder in a process of its own, with other modules beside it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
TESTS = FOLDER.parent


def run_suite(suite: Path, door: Path, *plugin: str, required: str = "") -> None:
    """Fails unless tests of the suite ran, and passed.

    Args:
        suite: A file of tests.
        door: Folder of the modules that stand in for those beside the suite.
        plugin: Further arguments of pytest.
        required: What BLL_REQUIRE says there.
    """
    code = (
        f"import sys, pytest; sys.path[:0] = [{str(door)!r}, {str(FOLDER)!r}, {str(TESTS)!r}]; "
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', *sys.argv[1:]]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["BLL_REQUIRE"] = required
    done = subprocess.run(
        [sys.executable, "-c", code, str(suite), *plugin],
        cwd=TESTS.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
