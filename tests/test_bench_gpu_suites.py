"""The suites' stage with made-up suites: what is filed, also of those that were stopped."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from bench.gpu import suites
from bench.gpu.record import Record
from bench.gpu.run import NotFinished, Run, StageFailed

#: What a process says, and how it ends; by the name of its test.
SCRIPTS = {
    "good": "print('x::a PASSED'); print('=== 3 passed in 0.1s ===')",
    "bad": "print('x::a FAILED\\n= 1 failed, 2 passed, 1 warning in 0.1s ='); raise SystemExit(1)",
    "none": "print('no tests ran in 0.1s'); raise SystemExit(5)",
    "skips": "print('2 skipped in 0.1s')",
    "crashes": "import os; print('Fatal'); os.abort()",
    "hangs": "import time; print('x::a PASSED\\nx::b PASSED', flush=True); time.sleep(60)",
    "breaks": "import time; print('x::a PASSED\\nx::b FAILED', flush=True); time.sleep(60)",
}


@pytest.fixture
def named(monkeypatch: pytest.MonkeyPatch):
    """Makes the stage find these tests."""

    def use(*names: str) -> None:
        found = [f"tests/gpu/test_suites.py::test_native[{name}]" for name in names]
        monkeypatch.setattr(suites, "collect", lambda run: found)

    def command(*words: str) -> list[str]:
        return [sys.executable, "-c", SCRIPTS[words[-1].partition("[")[2].removesuffix("]")]]

    monkeypatch.setattr(suites, "_pytest", command)
    return use


def some_run(folder: Path, seconds: float = 60.0) -> Run:
    return Run(Record(folder), time.monotonic() + seconds, full=False, dry=False)


def results(run: Run) -> dict[str, tuple[str, str]]:
    return {
        name.partition("[")[2].removesuffix("]"): (found["result"], found["note"])
        for name, found in run.record.suites.items()
    }


def test_suites_are_filed_as_they_end(tmp_path, named) -> None:
    named("good", "bad", "none", "skips", "crashes")
    run = some_run(tmp_path)
    with pytest.raises(
        StageFailed, match=r"1 of 5 suites passed; 4 wrong: test_suites.py::test_na"
    ):
        suites.run_suites(run)
    found = results(run)
    assert found["good"] == ("passed", "3 passed")
    assert found["bad"] == ("FAILED", "exit 1: 1 failed, 2 passed, 1 warning")
    # Nothing ran, everything was skipped: no test that passed, no suite that did.
    assert found["none"] == ("FAILED", "exit 5: no tests ran in 0.1s")
    assert found["skips"] == ("FAILED", "exit 0: 2 skipped")
    assert found["crashes"] == ("FAILED", "exit -6: Fatal")
    assert "| test_suites.py::test_native[bad] | FAILED |" in (tmp_path / "gpu.md").read_text()
    assert "x::a FAILED" in (tmp_path / "gpu.log").read_text()


def test_what_passed_before_the_deadline_is_kept(tmp_path, named, monkeypatch) -> None:
    monkeypatch.setattr(suites.os, "cpu_count", lambda: 3)
    run = some_run(tmp_path, 3.0)
    named("good", "hangs", "breaks")
    begun = time.monotonic()
    with pytest.raises(StageFailed, match=r"1 of 3 suites passed; 1 wrong: .*breaks.*; 1 not reac"):
        suites.run_suites(run)
    assert time.monotonic() - begun < 10
    found = results(run)
    assert found["good"] == ("passed", "3 passed")
    assert found["hangs"] == ("not finished", "stopped; 2 passed and 0 failed until then")
    assert found["breaks"] == ("FAILED", "stopped; 1 passed and 1 failed until then")
    # The next run goes on with what did not pass.
    monkeypatch.setitem(SCRIPTS, "good", "raise SystemExit('was run again')")
    for name in ("hangs", "breaks"):
        monkeypatch.setitem(SCRIPTS, name, "print('1 passed in 0.1s')")
    assert suites.run_suites(some_run(tmp_path)) == "3 of 3 suites passed"


def test_what_is_not_begun_is_said(tmp_path, named, monkeypatch) -> None:
    named("hangs", "good")
    monkeypatch.setattr(suites.os, "cpu_count", lambda: 1)
    with pytest.raises(NotFinished, match=r"^0 of 2 suites passed; 2 not reached: "):
        suites.run_suites(some_run(tmp_path, 1.0))


def test_a_process_for_every_suite_and_every_function() -> None:
    tests = [
        "tests/gpu/test_device.py::test_bits[native-float32]",
        "tests/gpu/test_device.py::test_bits[triton-float32]",
        "tests/gpu/test_device.py::test_sync[native]",
        "tests/gpu/test_suites.py::test_native[emulated_pair]",
        "tests/gpu/test_suites.py::test_triton[interpreted_pair]",
    ]
    assert suites.jobs(tests) == {
        "test_suites.py::test_native[emulated_pair]": tests[3:4],
        "test_suites.py::test_triton[interpreted_pair]": tests[4:5],
        "test_device.py::test_bits": tests[:2],
        "test_device.py::test_sync": tests[2:3],
    }
