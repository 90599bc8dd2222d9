"""On what and with what a run was made."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import bll_kernels

OPERATIONS = ("posterior_kl", "evidence_loss", "class_evidence_loss", "linear_cross_entropy")


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "bll-kernels": bll_kernels.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "platform": platform.platform(),
    }


def processor_name() -> str:
    """Name of the processor, as the operating system gives it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def device_name(device: torch.device) -> str:
    """Name of the processor or GPU behind ``device``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()


def backends(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """Backend that serves every public function on ``device`` for ``dtype``."""
    return {name: bll_kernels.backend_for(name, device=device, dtype=dtype) for name in OPERATIONS}


def peak_memory_bytes(device: torch.device) -> int:
    """Most bytes in use so far: by torch on a GPU, by the whole process on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak if sys.platform == "darwin" else 1024 * peak


def _git(*arguments: str) -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> tuple[str | None, bool | None]:
    """Commit this package was run from, and whether tracked files differ from it.

    Both are ``None`` when the package does not lie in a git work tree of its own.
    """
    # A package installed below somebody else's work tree must not report that project's commit.
    if _git("ls-files", "--error-unmatch", Path(__file__).name) is None:
        return None, None
    revision, changes = _git("rev-parse", "HEAD"), _git("status", "--porcelain", "-uno")
    return revision, None if changes is None else bool(changes)
