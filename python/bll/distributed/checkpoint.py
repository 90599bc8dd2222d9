"""Sharded checkpoints: every rank writes its blocks, one rename makes them the checkpoint.

`torch.distributed.checkpoint` writes and reads the tensors as safetensors files, a shard per rank;
everything else is JSON. (Its own format keeps the index as a pickle, which runs code when it is
read.) Names do not depend on ranks, so another number of ranks can go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from bll.atomic import sync_directory, write_atomically
from bll.distributed.contents import block_tensors
from bll.distributed.exchange import gather_values
from bll.errors import CheckpointError
from bll.executor import WrappedBlock

if TYPE_CHECKING:
    from bll.distributed.stage import Stage

INDEX = "index.json"
FORMAT = 1
_NAME = re.compile(r"batch-(\d{10})")


def latest(directory: Path) -> Path | None:
    """Return the newest whole checkpoint in a directory, or None."""
    found = [path for path in directory.glob("batch-*") if _NAME.fullmatch(path.name)]
    return max(found, default=None, key=lambda path: path.name)


def save(stage: Stage, directory: Path, extra: Mapping[str, Any], keep: int) -> Path:
    """Write `directory/batch-<n>`; every rank calls it.

    Raises:
        CheckpointError: The disk refused on some rank; earlier checkpoints are untouched.
    """
    final = directory / f"batch-{stage.batches_done:010d}"
    part = directory / f".{final.name}.part"
    leads = dist.get_rank(stage.groups.everyone) == 0
    problem = ""
    if leads:
        problem = _attempt(lambda: _fresh(part))
    _all_well(stage, problem, final)
    if stage.layout.replica == 0:
        problem = _attempt(lambda: _write_shard(stage, part))
    _all_well(stage, problem, final)
    if leads:
        index = {
            "format": FORMAT,
            "ranks": stage.layout.stages,
            "batches_done": stage.batches_done,
            "blocks": [block.name for block in stage.blocks],
            "extra": dict(extra),
        }
        problem = _attempt(lambda: _publish(part, final, index))
    _all_well(stage, problem, final)
    if leads:
        for old in sorted(directory.glob("batch-*"), key=lambda path: path.name)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return final


def load(stage: Stage, directory: Path) -> dict[str, Any] | None:
    """Read the newest checkpoint; every rank calls it. See `Stage.load`."""
    found = gather_values(
        None if (path := latest(directory)) is None else path.name,
        stage.groups.everyone,
        stage.device,
    )
    if len(set(found)) != 1:
        raise CheckpointError(
            f"{directory}: expected every rank to see the same newest checkpoint, got {found}; "
            "the directory must be shared by all hosts"
        )
    if found[0] is None:
        return None
    problem, state = "", None
    try:
        state = _read(stage, directory / found[0])
    except CheckpointError as error:
        problem = str(error)
    _all_well(stage, problem, directory / found[0])
    if state is None:
        raise CheckpointError(f"{directory}: {problem}")
    index, tensors, records = state
    for block, optimizer in zip(stage.own, stage.optimizers, strict=True):
        record = records[block.name]
        _restore(stage, block, optimizer, tensors, record)
    stage.batches_done = index["batches_done"]
    extra: dict[str, Any] = index["extra"]
    return extra


def _attempt(action: Any) -> str:
    try:
        action()
    except OSError as error:
        return f"{error.strerror or error}"
    return ""


def _all_well(stage: Stage, problem: str, path: Path) -> None:
    """Raise on every rank what went wrong on one."""
    problems = gather_values(problem, stage.groups.everyone, stage.device)
    for rank, text in enumerate(problems):
        if text:
            raise CheckpointError(f"{path}: rank {rank}: {text}; earlier ones are untouched")


def _fresh(part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)


def _publish(part: Path, final: Path, index: Mapping[str, Any]) -> None:
    write_atomically(part / INDEX, json.dumps(index, sort_keys=True, indent=1).encode())
    sync_directory(part)
    if final.exists():
        shutil.rmtree(final)
    os.rename(part, final)
    sync_directory(final.parent)


def _states(stage: Stage) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors of this rank by name, and what is no tensor, by block."""
    tensors: dict[str, Tensor] = {}
    records: dict[str, Any] = {}
    for block, optimizer in zip(stage.own, stage.optimizers, strict=True):
        for name, tensor in block_tensors(stage.handle, block).items():
            tensors[f"{block.index}/model/{name}"] = tensor
        state = optimizer.state_dict()  # type: ignore[attr-defined]
        plain: dict[str, dict[str, Any]] = {}
        for index, entries in state["state"].items():
            for name, value in entries.items():
                if isinstance(value, Tensor):
                    tensors[f"{block.index}/optimizer/{index}/{name}"] = value
                else:
                    plain.setdefault(str(index), {})[name] = value
        records[block.name] = {"groups": state["param_groups"], "plain": plain}
    # Each entry gets memory of its own, since step counters share theirs.
    own = {
        name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, x in tensors.items()
    }
    return own, records


def _write_shard(stage: Stage, part: Path) -> None:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    tensors, records = _states(stage)
    writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
    try:
        save(tensors, storage_writer=writer, process_group=stage.groups.pipeline)
    except CheckpointException as error:
        # No subclass of Exception; raised on every rank, with what went wrong on each.
        causes = "; ".join(f"rank {rank}: {what[0]}" for rank, what in error.failures.items())
        raise OSError(causes) from error
    member = stage.layout.stage
    files = {}
    for path in part.glob(f"shard-{member + 1:05d}-*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            files[path.name] = [path.stat().st_size, _digest(path)]
    record = {"files": files, "blocks": records}
    write_atomically(part / f"rank-{member:05d}.json", json.dumps(record).encode())


def _digest(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            found.update(piece)
    return found.hexdigest()


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: could not be read: {error}") from error
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(found).__name__}")
    return found


def _read(stage: Stage, path: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Read and check everything this rank needs, before anything is changed."""
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    index = _json(path / INDEX)
    names = [block.name for block in stage.blocks]
    if index.get("format") != FORMAT or index.get("blocks") != names:
        raise CheckpointError(
            f"{path}: expected format {FORMAT} with blocks {names}, "
            f"got {index.get('format')!r} with {index.get('blocks')!r}"
        )
    records: dict[str, Any] = {}
    try:
        for member in range(index["ranks"]):
            record = _json(path / f"rank-{member:05d}.json")
            records.update(record["blocks"])
            for name, (size, digest) in record["files"].items():
                _check_file(path, name, size, digest)
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a whole checkpoint: {error!r}") from error
    reader = HuggingFaceStorageReader(str(path))
    stored = reader.read_metadata().state_dict_metadata
    own = {block.index for block in stage.own}
    tensors = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in stored.items()
        if int(name.split("/", 1)[0]) in own and isinstance(entry, TensorStorageMetadata)
    }
    expected = {
        f"{block.index}/model/{name}": tensor
        for block in stage.own
        for name, tensor in block_tensors(stage.handle, block).items()
    }
    for name, tensor in expected.items():
        got = tensors.get(name)
        if got is None or got.shape != tensor.shape or got.dtype != tensor.dtype:
            what = "nothing" if got is None else f"{got.dtype} {list(got.shape)}"
            raise CheckpointError(
                f"{path}: {name}: expected {tensor.dtype} {list(tensor.shape)}, got {what}"
            )
    with warnings.catch_warnings():
        # Every rank reads for itself, with nothing to agree on; torch warns that it looks so.
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=reader, no_dist=True)
    return index, tensors, records


def _check_file(directory: Path, name: str, size: int, digest: str) -> None:
    path = directory / name
    if Path(name).name != name or not path.is_file():
        raise CheckpointError(f"{directory}: expected a file {name!r} in it, there is none")
    if path.stat().st_size != size or _digest(path) != digest:
        raise CheckpointError(f"{path}: damaged: its size or SHA-256 is not that of the checkpoint")


def _restore(
    stage: Stage, block: WrappedBlock, optimizer: Any, tensors: dict[str, Tensor], record: Any
) -> None:
    with torch.no_grad():
        for name, tensor in block_tensors(stage.handle, block).items():
            tensor.copy_(tensors[f"{block.index}/model/{name}"])
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in record["plain"].items()
    }
    parameters = list(block.parameters())
    prefix = f"{block.index}/optimizer/"
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            index, entry = name.removeprefix(prefix).split("/", 1)
            like = parameters[int(index)]
            if tensor.shape == like.shape:
                # A fused optimiser walks parameter and state in memory order.
                tensor = torch.empty_like(like).copy_(tensor)
            state.setdefault(int(index), {})[entry] = tensor
    groups = [
        {k: tuple(v) if isinstance(v, list) and k != "params" else v for k, v in group.items()}
        for group in record["groups"]
    ]
    optimizer.load_state_dict({"state": state, "param_groups": groups})
