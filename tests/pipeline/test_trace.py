"""Traces: what the executor's own events say about which blocks ran at once."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from local_blocks import adam, data, network

from bll import cli
from bll.timeline import draw_timeline
from bll_kernels.pipeline.backprop import Backprop
from bll_kernels.pipeline.events import Event, Recorder, chrome_trace
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.schedule import Kind

ROOT = Path(__file__).resolve().parents[2]
Slice = dict[str, Any]


def slices(trace: dict[str, Any], run: str) -> list[Slice]:
    """The operations of one run."""
    pids = [
        e["pid"]
        for e in trace["traceEvents"]
        if e["name"] == "process_name" and e["args"]["name"].startswith(run)
    ]
    assert len(pids) == 1
    return [e for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == pids[0]]


def overlaps(events: list[Slice]) -> int:
    """Pairs of operations of different blocks that ran at once."""
    return sum(
        a["tid"] != b["tid"] and max(a["ts"], b["ts"]) < min(a["ts"] + a["dur"], b["ts"] + b["dur"])
        for i, a in enumerate(events)
        for b in events[:i]
    )


def test_the_command_shows_overlap_and_writes_a_picture(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bll", "trace", "--out", str(tmp_path), "--blocks", "3"]
    command += ["--batches", "6", "--micro-batches", "2", "--width", "128", "--depth", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    trace = json.loads((tmp_path / "trace.json").read_text())
    assert overlaps(slices(trace, "backpropagation")) == 0
    assert overlaps(slices(trace, "local, sequential")) == 0
    pipelined = slices(trace, "local, pipelined, depth 2")
    assert overlaps(pipelined) > 0
    assert len({event["args"]["worker"] for event in pipelined}) == 2
    # 12 micro-batches, 3 blocks: forward, loss, backward of each, and 6 updates of a block.
    for run in ("local, sequential", "local, pipelined"):
        assert len(slices(trace, run)) == 3 * (3 * 12 + 6)
    names = {event["name"] for event in pipelined}
    assert {"bll::forward::block1", "bll::backward::output", "bll::update::block2"} <= names
    assert {e["name"] for e in slices(trace, "backprop")} >= {"bp::backward::block1"}
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_bad_options_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, message in (
        (["--depth", "9"], "depth: expected at most 4"),
        (["--batches", "0"], "batches: expected at least 1, got 0"),
        (["--rule", "bp"], "downstream"),
        (["--batch-size", "5", "--micro-batches", "2"], "divides into 2 parts, got 5"),
    ):
        assert cli.main(["trace", "--out", str(tmp_path / "x"), *option]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("mode", ["sequential", "pipelined"])
def test_events_of_a_block_are_its_schedule(mode: str) -> None:
    executor = Executor(network(0, 3, 8), adam, mode=mode, micro_batches=2)
    feed = data(0, 8, 8, 3)
    executor.run(feed)
    with executor.watched(Recorder()) as recorder:
        executor.run(feed)
    executor.run(feed)
    events = recorder.events()
    assert len(events) == 3 * (3 * 6 + 3)
    for block in range(3):
        own = [(e.micro_batch, e.kind) for e in events if e.block == block]
        want = []
        for j in range(6):
            want += [(j, Kind.FORWARD), (j, Kind.LOSS), (j, Kind.BACKWARD)]
            want += [(j, Kind.UPDATE)] if j % 2 else []
        assert own == want
        lane = [e for e in events if e.block == block]
        assert all(a.end <= b.start for a, b in itertools.pairwise(lane))


def test_recording_changes_no_bit() -> None:
    plain, recorded = (Executor(network(4, 3, 8), adam) for _ in range(2))
    for x, y in data(4, 8, 8, 3):
        plain.step(x, y)
        with recorded.watched(Recorder()):
            recorded.step(x, y)
    for left, right in zip(plain.blocks, recorded.blocks, strict=True):
        for p, q in zip(left.parameters(), right.parameters(), strict=True):
            assert torch.equal(p, q)


def test_backprop_is_backprop() -> None:
    blocks, twins = network(2, 3, 8, dropout=0.0), network(2, 3, 8, dropout=0.0)
    ours = Backprop(blocks, lambda p: torch.optim.SGD(p, lr=0.1))
    whole = torch.nn.Sequential(*(block.body for block in twins))
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for x, y in data(2, 12, 8, 4):
        loss = torch.nn.functional.cross_entropy(whole(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(ours.step(x, y), loss.detach())
    for mine, theirs in zip(blocks, twins, strict=True):
        for p, q in zip(mine.body.parameters(), theirs.body.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_chrome_trace_of_given_events() -> None:
    events = [Event("bll", 1, "head", 0, Kind.LOSS, "w0", 5_000, 7_500)]
    assert chrome_trace({"a run": events})["traceEvents"][-1] == {
        "ph": "X",
        "name": "bll::loss::head",
        "cat": "loss",
        "pid": 1,
        "tid": 1,
        "ts": 0.0,
        "dur": 2.5,
        "args": {"micro_batch": 0, "worker": "w0"},
    }
    with pytest.raises(ValueError, match="runs: expected one or more runs with events"):
        draw_timeline({"a run": Recorder().events()}, "nothing")
