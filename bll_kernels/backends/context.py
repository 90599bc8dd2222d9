"""Where the Python code of an op runs: on its tensors' device, and out of autocast's reach.

The dispatcher sees to both for kernels in C++ only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Matmuls keep the dtypes they are given, whatever autocast is on around."""
    if torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def kernel_context(device: torch.device) -> AbstractContextManager[object]:
    """What launches of Triton and ATen need to serve tensors on `device`.

    Triton launches on the current device and its stream, wherever the tensors are.
    """
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        return _elsewhere(device)
    return without_autocast(device.type)


@contextmanager
def _elsewhere(device: torch.device) -> Iterator[None]:
    with torch.cuda.device(device), without_autocast(device.type):
        yield
