"""The conditions that every number of a run depends on."""

from __future__ import annotations

import os
import subprocess
import time
from typing import Any

import torch

import bll_kernels
from bll.bench.memory import pages
from bll.training import machine

_GPU_FIELDS = (
    "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,power.limit,"
    "clocks_event_reasons.active,memory.total"
)


def command_output(*command: str) -> str | None:
    """Standard output of a command; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def gpu_state() -> dict[str, str] | None:
    """Clocks, temperature, power and throttle reasons of the GPU now; None without nvidia-smi."""
    line = command_output("nvidia-smi", f"--query-gpu={_GPU_FIELDS}", "--format=csv,noheader")
    if not line:
        return None
    values = [value.strip() for value in line.splitlines()[0].split(",")]
    return dict(zip(_GPU_FIELDS.split(","), values, strict=False))


def device_state(device: str) -> dict[str, Any] | None:
    """State of the device now: of a GPU by `gpu_state`, of a CPU its load."""
    if device.startswith("cuda"):
        return gpu_state()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {"load_average": load, "logical_processors": os.cpu_count()}


def conditions(device: str, timer: str) -> dict[str, Any]:
    """Everything a caption needs.

    Args:
        device: "cpu" or "cuda".
        timer: Name of the timer.
    """
    commit, changes = machine.commit()
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "uncommitted_changes": changes,
        "device": device,
        "device_name": machine.device_name(torch.device(device)),
        "logical_processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "timer": timer,
        "malloc": pages() if device == "cpu" else "torch's allocator on the GPU",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "versions": machine.versions(),
        "backends": bll_kernels.available(),
        "device_state_at_start": device_state(device),
    }
