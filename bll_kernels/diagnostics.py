"""What this installation is, which backends it has and why not, and what each function will use."""

from __future__ import annotations

import platform
import sys
from typing import Any

import torch

from bll_kernels._version import __version__
from bll_kernels.backends import available, backend_for
from bll_kernels.backends.native import CUDA_FAILURE, FAILURE, build_info
from bll_kernels.backends.selection import DEVICES, FUNCTIONS


def _devices() -> list[str]:
    return ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def report() -> dict[str, Any]:
    """The diagnosis as plain data, ready for JSON.

    Returns:
        Keys ``versions``, ``platform``, ``build`` (what the compiled part was built for),
        ``libraries`` (why a compiled library is not in use, or None), ``backends`` (per backend:
        usable, reason, devices) and ``functions`` (per function and device: the backend that
        serves it).
    """
    backends = {
        name: {"usable": reason is None, "reason": reason, "devices": sorted(DEVICES[name])}
        for name, reason in available().items()
    }
    functions = {
        function: {device: backend_for(function, device=device) for device in _devices()}
        for function in sorted(FUNCTIONS)
    }
    return {
        "versions": {
            "bll_kernels": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "platform": {
            "system": platform.system(),
            "machine": platform.machine(),
            "cuda_device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "threads": torch.get_num_threads(),
        },
        "build": build_info(),
        "libraries": {"_C": FAILURE, "_C_cuda": CUDA_FAILURE},
        "backends": backends,
        "functions": functions,
    }


def as_text(data: dict[str, Any]) -> str:
    """The diagnosis for people, one fact per line."""
    lines = [f"{name} {version}" for name, version in data["versions"].items()]
    machine = data["platform"]
    lines.append(f"{machine['system']} {machine['machine']}, {machine['threads']} threads")
    built = data["build"]
    if built:
        lines.append("built with " + ", ".join(f"{k}: {v}" for k, v in sorted(built.items())))
    for name, reason in data["libraries"].items():
        lines.append(f"library {name}: {'loaded' if reason is None else 'no: ' + reason}")
    for name, backend in data["backends"].items():
        state = "yes" if backend["usable"] else f"no: {backend['reason']}"
        lines.append(f"backend {name} ({', '.join(backend['devices'])}): {state}")
    for function, served in data["functions"].items():
        uses = ", ".join(f"{device} -> {backend}" for device, backend in served.items())
        lines.append(f"{function}: {uses}")
    return "\n".join(lines)


def main() -> int:
    """Print the diagnosis."""
    sys.stdout.write(as_text(report()) + "\n")
    return 0
