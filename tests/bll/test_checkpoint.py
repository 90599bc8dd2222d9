"""Checkpoints: round trip, refusal of damage, and crashes at any moment."""

from __future__ import annotations

import json
import math
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bll.atomic import write_atomically
from bll.training.checkpoint import (
    INDEX,
    CheckpointError,
    load_checkpoint,
    save_checkpoint,
    tensor_bytes,
)

RECORD = {"rate": 0.1 + 0.2, "none": None, "nested": {"list": [1, 2.5, "x"]}, "big": 2**62}
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3).t(),
    "half": torch.tensor([1.5, math.inf], dtype=torch.bfloat16),
    "count": torch.tensor(3),
    "empty": torch.zeros(0, 4),
    "bytes": torch.arange(16, dtype=torch.uint8),
}


def tensor_file(directory: Path) -> Path:
    return directory / json.loads((directory / INDEX).read_text())["tensors"]["file"]


def test_round_trip_keeps_every_bit(tmp_path):
    save_checkpoint(tmp_path / "new" / "folder", TENSORS, RECORD)
    tensors, record = load_checkpoint(tmp_path / "new" / "folder")
    assert record == RECORD
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_not_a_number_survives(tmp_path):
    save_checkpoint(tmp_path, {}, {"loss": math.nan})
    assert math.isnan(load_checkpoint(tmp_path)[1]["loss"])


def test_only_the_newest_stays(tmp_path):
    (tmp_path / ".tensors-000009.safetensors.abc.part").write_bytes(b"left by a crash")
    for number in range(3):
        save_checkpoint(tmp_path, {"x": torch.tensor(number)}, {"number": number})
    assert len(list(tmp_path.iterdir())) == 2
    tensors, record = load_checkpoint(tmp_path)
    assert int(tensors["x"]) == record["number"] == 2


def test_equal_tensors_are_equal_bytes_in_any_layout():
    x = torch.randn(2, 3, 4, 4)
    first = tensor_bytes({"b": x, "a": x[0]})
    second = tensor_bytes({"a": x[0].clone(), "b": x.to(memory_format=torch.channels_last)})
    assert first == second


def test_missing(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint there"):
        load_checkpoint(tmp_path)


def _edit(change):
    def damage(directory):
        index = json.loads((directory / INDEX).read_text())
        change(index)
        (directory / INDEX).write_text(json.dumps(index))

    return damage


DAMAGES = {
    "index cut": lambda d: (d / INDEX).write_bytes((d / INDEX).read_bytes()[:-20]),
    "index empty": lambda d: (d / INDEX).write_bytes(b""),
    "index a list": lambda d: (d / INDEX).write_text("[]"),
    "index not text": lambda d: (d / INDEX).write_bytes(b"\xff\xfe\x00"),
    "other format": _edit(lambda index: index.update(format=2)),
    "no tensors entry": _edit(lambda index: index.pop("tensors")),
    "tensors a number": _edit(lambda index: index.update(tensors=3)),
    "record changed": _edit(lambda index: index["record"].update(rate=0.3)),
    "record a list": _edit(lambda index: index.update(record=[])),
    "file elsewhere": _edit(lambda index: index["tensors"].update(file="../x.safetensors")),
    "file a number": _edit(lambda index: index["tensors"].update(file=7)),
    "tensors cut": lambda d: tensor_file(d).write_bytes(tensor_file(d).read_bytes()[:-1]),
    "tensors gone": lambda d: tensor_file(d).unlink(),
    "tensors empty": lambda d: tensor_file(d).write_bytes(b""),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damage_is_refused(tmp_path, damage):
    save_checkpoint(tmp_path, TENSORS, RECORD)
    damage(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_any_flipped_bit_is_refused_or_harmless(tmp_path):
    save_checkpoint(tmp_path, TENSORS, RECORD)
    rng = random.Random(3)
    refused = 0
    for _ in range(300):
        path = rng.choice([tmp_path / INDEX, tensor_file(tmp_path)])
        content = path.read_bytes()
        position = rng.randrange(len(content))
        changed = bytearray(content)
        changed[position] ^= 1 << rng.randrange(8)
        path.write_bytes(bytes(changed))
        try:
            tensors, record = load_checkpoint(tmp_path)
        except CheckpointError:
            refused += 1
        else:
            # A flipped bit in the index's white space changes nothing that is read.
            assert record == RECORD
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
        path.write_bytes(content)
    assert refused > 250


def test_safetensors_with_right_digest_but_wrong_content(tmp_path):
    import hashlib

    save_checkpoint(tmp_path, TENSORS, RECORD)
    content = b"not a safetensors file"
    tensor_file(tmp_path).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    _edit(lambda index: index["tensors"].update(size=len(content), sha256=digest))(tmp_path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize("moment", ["tensor file", "index"])
def test_full_disk_keeps_the_previous_checkpoint(tmp_path, moment):
    save_checkpoint(tmp_path, {"x": torch.zeros(4)}, {"number": 1})
    big = {"x": torch.zeros(100_000 if moment == "tensor file" else 4)}
    record = {"number": 2, "filler": "x" * (0 if moment == "tensor file" else 100_000)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(CheckpointError, match=r"not written: .* bytes free\)"):
            save_checkpoint(tmp_path, big, record)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert load_checkpoint(tmp_path)[1] == {"number": 1}
    assert not list(tmp_path.glob(".*"))


def test_directory_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointError, match="not written"):
        save_checkpoint(tmp_path / "file", {}, {})
    assert (tmp_path / "file").read_text() == "mine"


def test_killed_writers_leave_a_whole_checkpoint(tmp_path):
    script = Path(__file__).with_name("checkpoint_killer.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "60"],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > 20, "too few checkpoints were written to show anything"


def test_atomic_write_replaces_and_obeys_umask(tmp_path):
    path = tmp_path / "file"
    for content in (b"one", b"two"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]
