"""Every example runs, and reaches what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

EXPECTED = {
    "bare_op.py": (r"gradients differ by (\S+) of", lambda x: x < 1e-5),
    "pipelined.py": (r"accuracy (\S+) %", lambda x: x > 60),
    "resnet.py": (r"accuracy (\S+) %", lambda x: x > 90),
    "reversal_ranks.py": (r"test accuracy (\S+) %", lambda x: x > 90),
    "sequential.py": (r"test accuracy (\S+) %", lambda x: x > 90),
    "trainer.py": (r"evaluation loss (\S+)", lambda x: x < 6.0),
    "transformer.py": (r"test accuracy (\S+) %", lambda x: x > 95),
}


def test_every_example_is_listed():
    assert sorted(EXPECTED) == sorted(path.name for path in EXAMPLES.glob("*.py"))


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


@pytest.mark.parametrize("name", EXPECTED)
def test_example(name, tmp_path):
    if name == "trainer.py":
        pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
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
