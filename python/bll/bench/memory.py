"""Memory around a measurement: pages that stay, memory that is poisoned, and peaks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

# Parameters of glibc's mallopt.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_KEPT = {_M_MMAP_MAX: 0, _M_TOP_PAD: 1 << 28, _M_TRIM_THRESHOLD: 2**31 - 1}


def _libc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:
        return None
    return libc if hasattr(libc, "mallopt") else None


_pages = "freed pages go back to the system"


def keep_pages() -> None:
    """Make this process keep the pages it frees, for as long as it lives, where glibc can.

    Fresh outputs otherwise land on pages that the operating system must hand out and clear first,
    which can cost more than the computation and hides the differences between forms.
    """
    global _pages
    libc = _libc()
    if libc is not None and all(libc.mallopt(key, value) for key, value in _KEPT.items()):
        _pages = "freed pages are kept (mallopt)"


def pages() -> str:
    """What becomes of freed pages in this process, for the record."""
    return _pages


def drop_pages() -> None:
    """Give free pages back to the system once, where glibc allows it."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory from torch.empty holds NaN in here, so that nothing left unwritten can pass."""
    was = torch.are_deterministic_algorithms_enabled()
    warns = torch.is_deterministic_algorithms_warn_only_enabled()
    settings: Any = torch.utils.deterministic
    fill = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(was, warn_only=warns)
        settings.fill_uninitialized_memory = fill


def peak_extra_bytes(call: Callable[[], object], device: str = "cpu") -> int | None:
    """How far memory in use rises above its level during one call.

    On the CPU: the kernel's own count of this process's resident pages. On a GPU: torch's
    allocator.

    Returns:
        Bytes, or None where the system does not tell.
    """
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    drop_pages()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        result = call()
        peak = _status("VmHWM")
    except OSError:
        return None
    del result
    return peak - before


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {key}")
