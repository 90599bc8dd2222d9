"""Ops for CPU tensors that send them to the GPU, run there and bring the results back.

So the numerical suites, which build their inputs and their truth on the CPU, run unchanged on a
GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import Library

from bll_kernels.ops import SCHEMAS, op


def _moved(x: Any, device: str) -> Any:
    if isinstance(x, Tensor):
        # Strides and offsets are part of what is tested: the storage goes, not the elements.
        if device == "cuda":
            storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage())
            return torch.as_strided(storage.cuda(), x.shape, x.stride(), x.storage_offset())
        return x.to(device)
    return tuple(_moved(y, device) for y in x) if isinstance(x, tuple) else x


def _implementation(backend: str, name: str) -> Callable[..., Any]:
    run = op(backend, name)

    def implementation(*arguments: Any) -> Any:
        return _moved(run(*(_moved(x, "cuda") for x in arguments)), "cpu")

    return implementation


def serve(library: Library, backend: str) -> None:
    """Gives every op of ``library`` a CPU implementation: the backend's CUDA kernels."""
    for name in SCHEMAS:
        library.impl(name, _implementation(backend, name), "CPU")
