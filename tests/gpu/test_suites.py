"""The numerical suites of the emulator and of Triton's interpreter, on the GPU itself."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import REQUIRED
from device import SERVING, require_device
from suite_run import FOLDER, TESTS, run_suite

require_device()

#: All of whose tests ask the emulator for its launch tables or counts.
HOST_ONLY = {"emulated_plan", "emulated_traffic"}
NATIVE = sorted(x for x in (TESTS / "cuda").glob("emulated_*.py") if x.stem not in HOST_ONLY)
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
