"""Ranks that would not compute the same thing are refused before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed import ProcessGroup

import bll
import bll_kernels
from bll.distributed.exchange import gather_values
from bll.executor import WrappedBlock
from bll.handle import LocalLearning
from bll_kernels.diagnostics import report


class RecipeMismatch(ValueError):
    """Ranks differ in code, versions, tuning tables, backends or options."""


def code_digest() -> str:
    """SHA-256 of both packages' Python sources, tuning tables and schedules included."""
    found = hashlib.sha256()
    for package in (bll_kernels, bll):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return found.hexdigest()


def describe(
    handle: LocalLearning, blocks: list[WrappedBlock], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return everything a step's result depends on beside the data, as values JSON can hold."""
    diagnosis = report()
    return {
        "versions": diagnosis["versions"],
        "code": code_digest(),
        "build": diagnosis["build"],
        "backends": diagnosis["functions"],
        "rule": {key: str(value) for key, value in handle.describe().items()},
        "label_smoothing": handle.label_smoothing,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "parameters": {
            block.name: [[str(p.dtype), list(p.shape)] for p in block.parameters()]
            for block in blocks
        },
        **options,
    }


def agree(recipe: Mapping[str, Any], group: ProcessGroup, device: torch.device) -> None:
    """Compare the ranks' recipes; every rank of the group must call it.

    Raises:
        RecipeMismatch: Some rank differs from rank 0; raised on every rank, with the first
            difference and its rank.
    """
    digest = hashlib.sha256(repr(sorted(recipe.items())).encode()).hexdigest()
    digests = gather_values(digest, group, device)
    if len(set(digests)) == 1:
        return
    everyone = gather_values(dict(recipe), group, device)
    for rank, other in enumerate(everyone):
        for key in sorted({*everyone[0], *other}):
            expected, got = everyone[0].get(key), other.get(key)
            if expected != got:
                raise RecipeMismatch(
                    f"ranks: rank {rank} differs in {key!r}: expected that of rank 0, "
                    f"{_short(expected)}, got {_short(got)}"
                )
    raise RecipeMismatch(f"ranks: digests of equal recipes differ: {digests}")


def describe_optimizer(optimizer: Any) -> list[Any]:
    """Return class and options of an optimiser, as values JSON can hold."""
    groups = getattr(optimizer, "param_groups", [])
    options = [{k: str(v) for k, v in group.items() if k != "params"} for group in groups]
    return [type(optimizer).__name__, options]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
