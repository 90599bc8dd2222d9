"""Weights on disk: safetensors files written atomically."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bll.feedback import ShapedMessage

_PREFIX = "bll."


def save(model: nn.Module, path: str | os.PathLike[str], *, feedback: bool = True) -> None:
    """Write a model's `state_dict` as a safetensors file.

    The file holds tensors only, so equal weights give equal files. It is written beside `path` and
    moved there once complete: a crash never leaves half a file. A tensor that stands under several
    names (tied weights) is stored under the first.

    Args:
        model: A model, wrapped or not.
        path: The file.
        feedback: Whether the rule's own tensors, under `bll.`, are stored too.

    Raises:
        ValueError: A tensor has no shape yet, or an entry is not a tensor.
    """
    from safetensors.torch import save as serialise

    for name in _shapeless(model):
        raise ValueError(f"model: {name!r} has no shape yet; run one forward pass, then save")
    tensors: dict[str, Tensor] = {}
    entries = model.state_dict(keep_vars=True)
    for name, first in _first_names(entries).items():
        if name == first and (feedback or not name.startswith(_PREFIX)):
            tensors[name] = entries[name].detach().contiguous()
    _write_atomically(Path(path), serialise(tensors))


def load(model: nn.Module, path: str | os.PathLike[str], *, feedback: bool = True) -> None:
    """Read a file written by `save` into a model. Nothing changes unless everything fits.

    Args:
        model: The model; its tensors keep their device and memory layout.
        path: The file.
        feedback: False: the rule's own tensors, under `bll.`, are neither expected nor read.

    Raises:
        ValueError: A name is missing or unexpected, or a shape or dtype differs.
    """
    from safetensors.torch import load_file

    stored: dict[str, Tensor] = load_file(os.fspath(path))
    if not feedback:
        stored = {name: t for name, t in stored.items() if not name.startswith(_PREFIX)}
    wanted = _wanted(model, feedback)
    missing = sorted(set(wanted.values()) - set(stored))
    unexpected = sorted(set(stored) - set(wanted.values()))
    if missing or unexpected:
        raise ValueError(f"{os.fspath(path)}: names missing {missing}, unexpected {unexpected}")
    present, shapeless = _named_tensors(model), _shapeless(model)
    for name, first in wanted.items():
        own, new = present[name], stored[first]
        if name in shapeless:
            continue
        if own.shape != new.shape or own.dtype != new.dtype:
            raise ValueError(
                f"{os.fspath(path)}: {name!r} expected {own.dtype} {list(own.shape)}, "
                f"got {new.dtype} {list(new.shape)}"
            )
    model.load_state_dict({name: stored[first] for name, first in wanted.items()}, strict=False)


def _wanted(model: nn.Module, feedback: bool) -> dict[str, str]:
    names = _first_names(_named_tensors(model))
    return {n: first for n, first in names.items() if feedback or not n.startswith(_PREFIX)}


def _named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of `state_dict`, also while some have no shape yet."""
    stored = set()
    for prefix, module in model.named_modules(remove_duplicate=False):
        transient = module._non_persistent_buffers_set
        start = prefix + "." if prefix else ""
        stored |= {start + name for name in (*module._parameters, *module._buffers)}
        stored -= {start + name for name in transient}
    named: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return {name: tensor for name, tensor in named.items() if name in stored}


def _shapeless(model: nn.Module) -> list[str]:
    """Names of the message tensors that get their shape at the first forward pass."""
    names = []
    for prefix, module in model.named_modules():
        if isinstance(module, ShapedMessage) and not module.ready:
            names += [f"{prefix}.{name}" for name in (*module._parameters, *module._buffers)]
    return names


def _first_names(named: dict[str, Any]) -> dict[str, str]:
    """Map each name to the first name of the same tensor."""
    seen: dict[int, str] = {}
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"model: {name!r} in its state_dict is not a tensor")
        seen.setdefault(id(tensor), name)
    return {name: seen[id(tensor)] for name, tensor in named.items()}


def _write_atomically(path: Path, content: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
