"""Runs a suite of another folder in a process of its own, with other modules beside it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

FOLDER = Path(__file__).parent
TESTS = FOLDER.parent


def run_suite(
    suite: Path, door: Path, *plugin: str, required: str = "", timeout: float = 500
) -> None:
    """Fails unless tests of the suite ran, and passed; says their names as they do.

    Args:
        suite: A file of tests.
        door: Folder of the modules that stand in for those beside the suite.
        plugin: Further arguments of pytest.
        required: What BLL_REQUIRE says there.
        timeout: Seconds after which it is ended.
    """
    # Imported here: pytest puts the suite's own folder in front of everything.
    hidden = [path.stem for path in door.glob("*.py") if (suite.parent / path.name).exists()]
    code = (
        f"import sys, pytest; sys.path[:0] = [{str(door)!r}, {str(FOLDER)!r}, {str(TESTS)!r}]; "
        f"list(map(__import__, {hidden!r})); "
        "sys.exit(pytest.main(['-p', 'no:cacheprovider', '-vv', *sys.argv[1:]]))"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"BLL_REQUIRE": required, "PYTHONUNBUFFERED": "1"}
    lines = []
    with subprocess.Popen(
        [sys.executable, "-c", code, str(suite), *plugin],
        cwd=TESTS.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        timer = threading.Timer(timeout, process.kill)
        timer.start()
        # Line by line, so that what ends this process too leaves what passed until then.
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
        timer.cancel()
    text = "".join(lines)
    assert process.returncode == 0, text[-8000:]
    assert " passed" in text
