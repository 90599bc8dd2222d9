"""The numerical suites of the emulator and of Triton's interpreter, on the GPU itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REQUIRED
from device import SERVING, require_device
from suite_run import FOLDER, TESTS, run_suite

require_device()

NATIVE = sorted((TESTS / "cuda").glob("emulated_*.py"))
TRITON = sorted((TESTS / "triton").glob("interpreted_*.py"))
ELSEWHERE = ",".join(sorted(REQUIRED - {"cuda"}))


@pytest.mark.parametrize("suite", NATIVE, ids=lambda path: path.stem)
def test_native(suite: Path) -> None:
    assert SERVING["native"] is None
    run_suite(suite, FOLDER / "native_door", required=ELSEWHERE)


@pytest.mark.parametrize("suite", TRITON, ids=lambda path: path.stem)
def test_triton(suite: Path) -> None:
    assert SERVING["triton"] is None
    run_suite(suite, FOLDER / "triton_door", "-p", "triton_on_device", required=ELSEWHERE)
