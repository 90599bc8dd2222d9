"""Checkpoints on disk: a tensor file, and a small index that names and proves it.

``index.json`` is the checkpoint: it names one safetensors file with its size and SHA-256 and holds
everything that is not a tensor. A new checkpoint writes a tensor file under a new name first and
replaces the index last, so a crash at any moment leaves a whole checkpoint: the old or the new.
No code is ever loaded from a checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from bll.atomic import write_atomically
from bll.errors import CheckpointError

INDEX = "index.json"
FORMAT = 1


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _canonical(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True).encode()


def tensor_bytes(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Safetensors image of ``tensors``; equal tensors give equal bytes."""
    # Each entry gets memory of its own: safetensors refuses views that share storage.
    own = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return safetensors.torch.save(own)


def save_checkpoint(
    directory: Path, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]
) -> None:
    """Write a checkpoint into ``directory``; the previous one stays valid until this one is whole.

    Args:
        directory: Created if need be.
        tensors: Tensors by name.
        record: Everything else, as values JSON can hold.

    Raises:
        CheckpointError: The disk refused; the message names the path and the free space.
    """
    content = tensor_bytes(tensors)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        name = f"tensors-{_next_serial(directory):06d}.safetensors"
        index = {
            "format": FORMAT,
            "tensors": {"file": name, "size": len(content), "sha256": _digest(content)},
            "record": dict(record),
            "record_sha256": _digest(_canonical(record)),
        }
        write_atomically(directory / name, content)
        write_atomically(directory / INDEX, json.dumps(index, sort_keys=True, indent=1).encode())
    except OSError as error:
        raise CheckpointError(
            f"{directory}: checkpoint not written: {error.strerror or error}"
            f"{_free_space(directory)}; the previous one is untouched"
        ) from error
    _remove_others(directory, keep=name)


def load_checkpoint(directory: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and record of the checkpoint in ``directory``.

    Raises:
        CheckpointError: There is none, or it is damaged or of an unknown format; the message says
            what was expected and what came.
    """
    path = directory / INDEX
    index = _read_index(path)
    if index.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT}, got {index.get('format')!r}")
    try:
        entry, record = index["tensors"], index["record"]
        name, size, digest = entry["file"], entry["size"], entry["sha256"]
        record_digest = index["record_sha256"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: expected an entry {error}, it is missing") from error
    if not isinstance(record, dict) or _digest(_canonical(record)) != record_digest:
        raise CheckpointError(f"{path}: damaged: the record's SHA-256 does not match")
    if not isinstance(name, str) or Path(name).name != name:
        raise CheckpointError(f"{path}: expected a file name in the same directory, got {name!r}")
    content = _read(directory / name)
    if len(content) != size or _digest(content) != digest:
        raise CheckpointError(
            f"{directory / name}: damaged: expected {size} bytes with SHA-256 {digest}, "
            f"got {len(content)} bytes with {_digest(content)}"
        )
    try:
        return safetensors.torch.load(content), record
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{directory / name}: not a safetensors file: {error}") from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: could not be read: {error.strerror or error}") from error


def _read_index(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError(f"{path.parent}: no checkpoint there (expected {path.name})")
    try:
        index = json.loads(_read(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if not isinstance(index, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(index).__name__}")
    return index


def _next_serial(directory: Path) -> int:
    numbers = [
        int(path.stem.removeprefix("tensors-"))
        for path in directory.glob("tensors-*.safetensors")
        if path.stem.removeprefix("tensors-").isdecimal()
    ]
    return max(numbers, default=0) + 1


def _remove_others(directory: Path, keep: str) -> None:
    """Remove older tensor files and what crashed writers left behind."""
    for pattern in ("tensors-*.safetensors", ".*.part"):
        for path in directory.glob(pattern):
            if path.name != keep:
                with contextlib.suppress(OSError):
                    path.unlink()


def _free_space(directory: Path) -> str:
    try:
        return f" ({shutil.disk_usage(directory).free} bytes free)"
    except OSError:
        return ""
