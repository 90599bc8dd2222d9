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

from bll_kernels.ops import op
from bll_kernels.schemas import CUDA_SCHEMAS, SCHEMAS

#: Where the ops run.
DEVICE = "cuda"


def _sent(x: Any) -> Any:
    if isinstance(x, Tensor):
        # Strides and offsets are part of what is tested: the storage goes, not the elements.
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(DEVICE)
        return torch.as_strided(storage, x.shape, x.stride(), x.storage_offset())
    return type(x)(map(_sent, x)) if isinstance(x, tuple | list) else x


def _brought(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.cpu()
    return type(x)(map(_brought, x)) if isinstance(x, tuple | list) else x


def _bring_back(given: Any, moved: Any) -> None:
    """What an op wrote into its arguments."""
    if isinstance(given, Tensor):
        given.copy_(moved)
    elif isinstance(given, tuple | list):
        for x, y in zip(given, moved, strict=True):
            _bring_back(x, y)


def _implementation(backend: str, name: str) -> Callable[..., Any]:
    run = op(backend, name)
    written = [x.alias_info is not None and x.alias_info.is_write for x in run._schema.arguments]

    def implementation(*arguments: Any) -> Any:
        moved = [_sent(x) for x in arguments]
        result = _brought(run(*moved))
        for given, there, is_written in zip(arguments, moved, written, strict=False):
            if is_written:
                _bring_back(given, there)
        return result

    return implementation


def serve(library: Library, backend: str) -> None:
    """Gives every op of ``library`` a CPU implementation: the backend's CUDA kernels."""
    for name in {**SCHEMAS, **(CUDA_SCHEMAS if backend == "native" else {})}:
        library.impl(name, _implementation(backend, name), "CPU")
