"""A rank that dies, hangs or raises ends all others in time, each with an error that names it."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import guard_jobs
import jobs
import pytest
from launch import Ended, run_ranks, values

import bll

#: Block of each rank in the network of the jobs.
BLOCKS = ("0", "1", "2", "output")


def check(ended: list[Ended], who: int, how: str) -> None:
    assert not [rank for rank, one in enumerate(ended) if one.code is None], "a rank was stuck"
    for rank, one in enumerate(ended):
        if rank == who:
            if how == "kill":
                assert one.code == -9
            if how == "raise":
                kind, text, notes = one.error
                assert (kind, text) == ("ArithmeticError", "planted")
                assert f"in block {BLOCKS[who]!r}, forward of micro-batch" in notes[0]
            continue
        assert one.error is not None, f"rank {rank} ended with {one.code}"
        kind, text, _ = one.error
        assert kind == "RankFailure", text
        what = {
            "kill": "is gone",
            "hang": "did not answer within",
            "raise": "raised ArithmeticError: planted in block",
        }[how]
        assert f"rank {who} (block {BLOCKS[who]!r}) {what}" in text, text


def fault(tmp_path: Path, who: int, how: str, at: int, timeout: float) -> float:
    """Plant one fault, check how every rank ends, and return the slowest end after it."""
    mark = tmp_path / "mark"
    ended = run_ranks(
        guard_jobs.resumable,
        4,
        directory=str(tmp_path / "checkpoints"),
        who=who,
        how=how,
        at=at,
        patience=timeout,
        mark=str(mark),
        stop_early=(who,) if how == "hang" else (),
    )
    if how == "hang":
        assert ended[who].code is None
        ended[who].code = 0
    check(ended, who, how)
    moment = float(mark.read_text())
    delay = max(one.at - moment for rank, one in enumerate(ended) if rank != who)
    assert delay < timeout + 5.0
    return delay


def resume(tmp_path: Path, at: int) -> None:
    """Start the ranks again, and compare with a run that was never interrupted."""
    ranks = values(run_ranks(guard_jobs.resumable, 4, directory=str(tmp_path / "checkpoints")))
    # Forward number `at` belongs to batch at // 4; every third batch ends with a checkpoint.
    assert {rank["first"] for rank in ranks} == {at // 12 * 3}
    want = uninterrupted()
    for rank in ranks:
        assert rank["model"] == want["model"]
    assert [s for rank in ranks for s in rank["optimizers"]] == want["optimizers"]


@functools.cache
def uninterrupted() -> dict[str, Any]:
    model = jobs.network()
    run = bll.executor(model, jobs.adam, micro_batches=4, seed=5)
    for x, labels in jobs.batches(12, 16):
        run.step(x, labels)
    return jobs.outcome(model, run.optimizers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "how", "at"), [(1, "kill", 30), (0, "kill", 5), (2, "raise", 17), (3, "raise", 47)]
)
def test_a_rank_dies_or_raises_and_the_run_goes_on(
    tmp_path: Path, who: int, how: str, at: int
) -> None:
    fault(tmp_path, who, how, at=at, timeout=30.0)
    resume(tmp_path, at)


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1, 3])
def test_a_rank_hangs_and_the_run_goes_on(tmp_path: Path, who: int) -> None:
    fault(tmp_path, who, "hang", at=25, timeout=5.0)
    resume(tmp_path, 25)


@pytest.mark.long
def test_many_faults(tmp_path: Path) -> None:
    """30 kills, 30 raises and 10 hangs at random moments: no stuck job, no differing bit."""
    moments = random.Random(8)
    plan = ["kill"] * 30 + ["raise"] * 30 + ["hang"] * 10
    moments.shuffle(plan)
    slowest = dict.fromkeys(("kill", "raise", "hang"), 0.0)
    for number, how in enumerate(plan):
        directory = tmp_path / str(number)
        directory.mkdir()
        who, at = moments.randrange(4), moments.randrange(48)
        delay = fault(directory, who, how, at=at, timeout=10.0)
        resume(directory, at)
        slowest[how] = max(slowest[how], delay)
        print(
            f"{number + 1:2d} {how:5s} rank {who} forward {at:2d}: others ended after {delay:.2f} s"
        )
    print("slowest:", ", ".join(f"{how} {delay:.2f} s" for how, delay in slowest.items()))
