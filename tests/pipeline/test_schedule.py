"""Schedules, read as tables."""

from __future__ import annotations

import pytest

from bll_kernels.pipeline.schedule import (
    Kind,
    Op,
    gpipe,
    in_flight,
    needs,
    one_forward_one_backward,
    pipelined,
    sequential,
)

COUNTS = [(k, m, n) for k in (1, 2, 3, 5) for m in (1, 2, 4) for n in (1, 3)]


def table(ops: list[Op]) -> list[str]:
    """A line per tick: which block works on which micro-batch; `*` where it updates."""
    ticks: dict[int, dict[int, str]] = {}
    for op in ops:
        cell = ticks.setdefault(op.tick, {}).setdefault(op.block, f"{op.block}:{op.micro_batch}")
        if op.kind is Kind.UPDATE:
            ticks[op.tick][op.block] = cell + "*"
    return [" ".join(cells[block] for block in sorted(cells)) for _, cells in sorted(ticks.items())]


def test_sequential() -> None:
    assert table(sequential(3, micro_batches=2)) == ["0:0", "1:0", "2:0", "0:1*", "1:1*", "2:1*"]


def test_all_blocks_in_flight() -> None:
    assert table(pipelined(3, depth=3, micro_batches=1, batches=4)) == [
        "0:0*",
        "0:1* 1:0*",
        "0:2* 1:1* 2:0*",
        "0:3* 1:2* 2:1*",
        "1:3* 2:2*",
        "2:3*",
    ]


def test_two_of_three_blocks_in_flight() -> None:
    assert table(pipelined(3, depth=2, micro_batches=1, batches=4)) == [
        "0:0*",
        "0:1* 1:0*",
        "1:1* 2:0*",
        "0:2* 2:1*",
        "0:3* 1:2*",
        "1:3* 2:2*",
        "2:3*",
    ]


def test_the_output_goes_on_before_the_own_loss() -> None:
    ops = [op for op in pipelined(2, depth=2) if op.block == 0]
    assert [op.kind for op in ops] == [Kind.FORWARD, Kind.LOSS, Kind.BACKWARD, Kind.UPDATE]
    assert needs(Op(1, 1, 0, Kind.FORWARD), 2) == [(0, 0, Kind.FORWARD)]
    assert needs(Op(1, 1, 0, Kind.BACKWARD), 2) == []


@pytest.mark.parametrize(("blocks", "micro_batches", "batches"), COUNTS)
def test_every_depth_does_the_same_work_in_an_allowed_order(
    blocks: int, micro_batches: int, batches: int
) -> None:
    reference = sequential(blocks, micro_batches=micro_batches, batches=batches)
    for depth in range(1, blocks + 1):
        for slots in (1, 2, 3):
            ops = pipelined(
                blocks, depth=depth, micro_batches=micro_batches, batches=batches, slots=slots
            )
            assert in_flight(ops) <= depth
            for block in range(blocks):
                lane = [(op.micro_batch, op.kind) for op in ops if op.block == block]
                # A block sees its micro-batches, and updates, in the order of the reference.
                assert lane == [(o.micro_batch, o.kind) for o in reference if o.block == block]
            forward = {(op.block, op.micro_batch): op.tick for op in ops if op.kind is Kind.FORWARD}
            for (block, j), tick in forward.items():
                if block:
                    assert tick > forward[block - 1, j]
                if block + 1 < blocks and j >= slots:
                    assert tick > forward[block + 1, j - slots] - 1


def test_steady_state_keeps_depth_blocks_busy() -> None:
    for depth in (1, 2, 3, 4):
        ops = pipelined(4, depth=depth, micro_batches=1, batches=40)
        ticks = 1 + max(op.tick for op in ops)
        # 160 local steps; filling and draining cost at most a tick per block.
        assert 160 / depth <= ticks <= 160 / depth + 4


def test_gpipe() -> None:
    assert table(gpipe(2, micro_batches=2)) == [
        "0:0", "0:1 1:0", "1:1", "1:0", "0:0 1:1", "0:1 1:1*", "0:1*",
    ]  # fmt: skip


def test_one_forward_one_backward_holds_few_micro_batches() -> None:
    for stages in (1, 2, 4):
        for micro_batches in (1, 2, 8):
            ops = one_forward_one_backward(stages, micro_batches=micro_batches)
            for stage in range(stages):
                lane = [op.kind for op in ops if op.block == stage]
                assert lane.count(Kind.FORWARD) == lane.count(Kind.BACKWARD) == micro_batches
                assert lane[-1] is Kind.UPDATE
                alive = most = 0
                for kind in lane:
                    alive += (kind is Kind.FORWARD) - (kind is Kind.BACKWARD)
                    most = max(most, alive)
                assert most == min(stages - stage, micro_batches)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pipelined(0, depth=1), "blocks: expected at least 1, got 0"),
        (lambda: pipelined(2, depth=3), "depth: expected at most 2, the number of blocks, got 3"),
        (lambda: pipelined(2, depth=0), "depth: expected at least 1, got 0"),
        (lambda: pipelined(2, depth=2, slots=0), "slots: expected at least 1, got 0"),
        (lambda: sequential(2, micro_batches=-1), "micro_batches: expected at least 1, got -1"),
        (lambda: gpipe(2, micro_batches=0), "micro_batches: expected at least 1, got 0"),
        (lambda: one_forward_one_backward(0, micro_batches=1), "stages: expected at least 1"),
        (lambda: Op(0, -1, 0, Kind.LOSS), "op: expected numbers of at least 0"),
    ],
)
def test_bad_counts(make: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()  # type: ignore[operator]


def test_a_count_is_an_int() -> None:
    with pytest.raises(TypeError, match="depth: expected an int, got float"):
        pipelined(2, depth=1.0)  # type: ignore[arg-type]
