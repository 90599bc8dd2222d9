"""What serves the device under test, asked in a process that loads what is built now.

python -m bench.gpu.serving
"""

from __future__ import annotations

import json
import sys
from typing import Any

import bll_kernels
from bench.gpu.commands import execute
from bench.gpu.run import Run, StageFailed
from bll_kernels import available
from bll_kernels.backends import native


def found() -> dict[str, Any]:
    """What this process can use; null is "serves", anything else the reason why not."""
    return {
        "bll_kernels": bll_kernels.__version__,
        "backends": available(),
        "native_cuda": native.CUDA_FAILURE,
    }


def backends(serving: dict[str, Any], dry: bool) -> list[str]:
    """What serves the device under test, by name."""
    reasons = serving["backends"]
    if dry:
        return ["native"] if reasons["native"] is None else ["reference"]
    # The reason why there is no native library for CUDA tensors is not among the backends'.
    able = {"native": serving["native_cuda"], "triton": reasons["triton"]}
    return [name for name, reason in able.items() if reason is None]


def ask(run: Run) -> dict[str, Any]:
    """The same of a fresh process, filed with the conditions: this one may hold an older library.

    Raises:
        StageFailed: It ended without an answer.
    """
    output = execute(run, [sys.executable, "-m", "bench.gpu.serving"])
    try:
        answer: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise StageFailed(f"no answer what serves: {output[-200:]!r}") from error
    run.record.now |= answer
    run.record.flush()
    return answer


if __name__ == "__main__":
    print(json.dumps(found()))
