"""A rank that dies, hangs or raises ends all others in time, each with an error that names it."""

from __future__ import annotations

from pathlib import Path

import guard_jobs
import pytest
from launch import Ended, run_ranks

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
        guard_jobs.faulty,
        4,
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


@pytest.mark.parametrize(("who", "how"), [(1, "kill"), (2, "raise"), (0, "kill")])
def test_a_rank_dies_or_raises(tmp_path: Path, who: int, how: str) -> None:
    fault(tmp_path, who, how, at=9, timeout=30.0)


@pytest.mark.parametrize("who", [0, 1, 3])
def test_a_rank_hangs(tmp_path: Path, who: int) -> None:
    fault(tmp_path, who, "hang", at=9, timeout=5.0)
