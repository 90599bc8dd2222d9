"""The emulator sees mistakes that it is there to see."""

from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path

import pytest
from emulator_build import CSRC, FLAGS, HERE, ROOT
from toolkit import find_compiler, find_cuda, needs_toolkit

pytestmark = needs_toolkit

NONE, NO_BARRIER, OVERRUN, UNSET, SHUFFLE_IN_BRANCH, BARRIER_IN_BRANCH, ODD = range(7)
CLUSTER, NO_WAIT, NO_CLUSTER_BARRIER, LEFT, BEYOND_LIMIT = range(7, 12)
WANT = sum((63 - i) * i for i in range(64))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("planted") / "planted.so"
    command = [*find_compiler(), *FLAGS, f"-I{CSRC}", f"-I{HERE}"]
    command += ["-isystem", str(find_cuda().include), "-shared", "-x", "c++"]
    command += [str(HERE / "planted.cu"), "-o", str(library)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = ctypes.CDLL(str(Path(library)))
    loaded.bll_planted.restype = ctypes.c_char_p
    return loaded


def run(planted: ctypes.CDLL, mistake: int, order: int) -> str | float:
    numbers = (ctypes.c_float * 64)(*range(64))
    out = ctypes.c_float(-1)
    message = planted.bll_planted(mistake, order, numbers, ctypes.byref(out))
    return out.value if message is None else message.decode()


@pytest.mark.parametrize("order", [0, 1, 7])
def test_a_correct_kernel_is_correct(planted: ctypes.CDLL, order: int) -> None:
    assert run(planted, NONE, order) == WANT
    assert run(planted, CLUSTER, order) == WANT


def test_a_missing_barrier_shows_in_some_order(planted: ctypes.CDLL) -> None:
    assert any(run(planted, NO_BARRIER, order) != WANT for order in (0, 1, 7))
    assert any(run(planted, NO_CLUSTER_BARRIER, order) != WANT for order in (0, 1, 7))


@pytest.mark.parametrize("order", [0, 1, 7])
def test_what_every_order_shows(planted: ctypes.CDLL, order: int) -> None:
    assert "outside a shared array" in str(run(planted, OVERRUN, order))
    unset = run(planted, UNSET, order)
    assert isinstance(unset, float) and math.isnan(unset)
    assert "deadlock" in str(run(planted, SHUFFLE_IN_BRANCH, order))
    assert "__syncthreads" in str(run(planted, BARRIER_IN_BRANCH, order))
    assert "odd address" in str(run(planted, ODD, order))
    waited = run(planted, NO_WAIT, order)
    assert isinstance(waited, float) and math.isnan(waited)
    assert "after some threads have left" in str(run(planted, LEFT, order))
    assert "more shared memory than the kernel's limit" in str(run(planted, BEYOND_LIMIT, order))
