"""The numerical suites of the emulator and of Triton's interpreter, on the GPU itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REQUIRED
from device import SERVING, require_device

require_device()

FOLDER = Path(__file__).parent
TESTS = FOLDER.parent
NATIVE = sorted((TESTS / "cuda").glob("emulated_*.py"))
TRITON = sorted((TESTS / "triton").glob("interpreted_*.py"))


def run(suite: Path, door: Path, *plugin: str) -> None:
    code = (
        f"import sys, pytest; sys.path[:0] = [{str(door)!r}, {str(FOLDER)!r}, {str(TESTS)!r}]; "
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', '-q', *sys.argv[1:]]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["BLL_REQUIRE"] = ",".join(sorted(REQUIRED - {"cuda"}))
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


@pytest.mark.parametrize("suite", NATIVE, ids=lambda path: path.stem)
def test_native(suite: Path) -> None:
    assert SERVING["native"] is None
    run(suite, FOLDER / "native_door")


@pytest.mark.parametrize("suite", TRITON, ids=lambda path: path.stem)
def test_triton(suite: Path) -> None:
    assert SERVING["triton"] is None
    run(suite, FOLDER / "triton_door", "-p", "triton_on_device")
