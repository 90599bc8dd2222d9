"""Sharded checkpoints: other numbers of ranks, damage, foreign and malicious content."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import guard_jobs
import jobs
import pytest
import torch
from launch import run_ranks, values

import bll
from bll.distributed.checkpoint import latest


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    values(run_ranks(guard_jobs.resumable, 4, directory=str(directory), steps=6))
    return directory


def copied(written: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(written, target / "checkpoints")
    return target / "checkpoints"


def test_what_is_written(written: Path) -> None:
    assert sorted(path.name for path in written.iterdir()) == [
        "batch-0000000003",
        "batch-0000000006",
    ]
    newest = latest(written)
    assert newest is not None and newest.name == "batch-0000000006"
    names = sorted(path.name for path in newest.iterdir())
    assert names[0] == "index.json"
    assert [name for name in names if name.startswith("rank-")] == [
        f"rank-{rank:05d}.json" for rank in range(4)
    ]
    shards = [name for name in names if name.endswith(".safetensors")]
    assert len(shards) == 4 and len(names) == 9
    for name in shards:
        assert not (newest / name).read_bytes()[8:].startswith(b"\x80"), "no pickle"


def test_another_number_of_ranks_goes_on(written: Path, tmp_path: Path) -> None:
    directory = copied(written, tmp_path)
    ranks = values(run_ranks(guard_jobs.resumable, 2, directory=str(directory)))
    model = jobs.network()
    run = bll.executor(model, jobs.adam, micro_batches=4, seed=5)
    for x, labels in jobs.batches(12, 16):
        run.step(x, labels)
    want = jobs.outcome(model, run.optimizers)
    assert ranks[0]["first"] == 6
    assert ranks[0]["model"] == ranks[1]["model"] == want["model"]
    assert [s for rank in ranks for s in rank["optimizers"]] == want["optimizers"]


def damage(path: Path, how: str) -> None:
    shard = sorted(path.glob("shard-*.safetensors"))[2]
    if how == "flipped bit":
        content = bytearray(shard.read_bytes())
        content[-3] ^= 1
        shard.write_bytes(content)
    if how == "cut off":
        shard.write_bytes(shard.read_bytes()[:-8])
    if how == "missing shard":
        shard.unlink()
    if how == "no index":
        (path / "index.json").unlink()
    if how == "other blocks":
        index = json.loads((path / "index.json").read_bytes())
        (path / "index.json").write_text(json.dumps({**index, "blocks": ["a", "b", "c", "d"]}))
    if how == "outside":
        record = json.loads((path / "rank-00001.json").read_bytes())
        record["files"] = {"../../secret": [1, "0"]}
        (path / "rank-00001.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("flipped bit", "damaged: its size or SHA-256"),
        ("cut off", "damaged: its size or SHA-256"),
        ("missing shard", "there is none"),
        ("no index", "could not be read"),
        ("other blocks", "expected format 1 with blocks"),
        ("outside", "expected a file '../../secret' in it"),
    ],
)
def test_damage_is_refused_and_nothing_changed(
    written: Path, tmp_path: Path, how: str, text: str
) -> None:
    directory = copied(written, tmp_path)
    damage(directory / "batch-0000000006", how)
    for rank in values(run_ranks(guard_jobs.refused, 2, directory=str(directory))):
        assert rank["error"][0] == "CheckpointError"
        assert text in rank["error"][1]
        assert rank["before"] == rank["after"]


class Explosive:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def test_code_in_a_checkpoint_does_not_run(written: Path, tmp_path: Path) -> None:
    """Pickles under the names that torch's own format reads, and in place of a shard."""
    directory = copied(written, tmp_path)
    path = directory / "batch-0000000006"
    bomb = pickle.dumps(Explosive(tmp_path / "ran"))
    (path / ".metadata").write_bytes(bomb)
    (path / "__0_0.distcp").write_bytes(bomb)
    values(run_ranks(guard_jobs.resumable, 2, directory=str(directory), steps=6))
    sorted(path.glob("shard-*.safetensors"))[0].write_bytes(bomb)
    for rank in values(run_ranks(guard_jobs.refused, 2, directory=str(directory))):
        assert rank["error"][0] == "CheckpointError"
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_the_checkpoint_before(written: Path, tmp_path: Path) -> None:
    directory = copied(written, tmp_path)
    for rank in values(run_ranks(guard_jobs.full_disk, 2, directory=str(directory))):
        kind, text = rank["error"]
        assert kind == "CheckpointError" and "File too large" in text, text
        assert rank["next"] == 6 and rank["usable"]
    assert latest(directory) == directory / "batch-0000000006"


def test_bytes_are_those_of_the_tensors(written: Path) -> None:
    from safetensors.torch import load_file

    path = latest(written)
    assert path is not None
    merged: dict[str, torch.Tensor] = {}
    for shard in path.glob("shard-*.safetensors"):
        merged.update(load_file(shard))
    assert {name.split("/")[0] for name in merged} == {"0", "1", "2", "3"}
    assert any("message" in name for name in merged)
    assert any("exp_avg_sq" in name for name in merged)
