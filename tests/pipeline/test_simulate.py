"""The simulator against the closed forms it must reproduce."""

from __future__ import annotations

import random

import pytest

from bll_kernels.pipeline.schedule import (
    Kind,
    Op,
    gpipe,
    one_forward_one_backward,
    pipelined,
    sequential,
)
from bll_kernels.pipeline.simulate import (
    BlockTimes,
    peak_activation_bytes,
    simulate,
    simulate_workers,
)

LOCAL = BlockTimes(forward=3.0, loss=0.5, backward=5.0, update=1.0)
STEP = 9.5  # all four
BP = BlockTimes(forward=1.0, backward=2.0)


@pytest.mark.parametrize("blocks", [1, 2, 4, 8])
@pytest.mark.parametrize("batches", [1, 5, 20])
def test_local_pipeline_pays_its_filling_once(blocks: int, batches: int) -> None:
    ops = pipelined(blocks, depth=blocks, batches=batches)
    timeline = simulate(ops, [LOCAL] * blocks)
    # sum of the forwards before the last block, then one local step per batch.
    assert timeline.makespan == pytest.approx((blocks - 1) * 3.0 + batches * STEP, rel=1e-12)
    assert timeline.utilisation + timeline.bubble == pytest.approx(1)


def test_the_slowest_block_sets_the_pace() -> None:
    times = [LOCAL, LOCAL, BlockTimes(6.0, 1.0, 10.0, 2.0)]
    for batches in (3, 30):
        ops = pipelined(3, depth=3, batches=batches)
        timeline = simulate(ops, times)
        assert timeline.makespan == pytest.approx(3 + 3 + batches * 19.0, rel=1e-12)


@pytest.mark.parametrize("blocks", [1, 3, 4])
def test_one_worker_does_everything_in_turn(blocks: int) -> None:
    for ops in (sequential(blocks, batches=4), pipelined(blocks, depth=blocks, batches=4)):
        timeline = simulate(ops, [LOCAL] * blocks, lanes=1)
        assert timeline.makespan == pytest.approx(4 * blocks * STEP)
        assert timeline.utilisation == pytest.approx(1)


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("micro_batches", [1, 4, 16])
def test_backprop_pipelines(stages: int, micro_batches: int) -> None:
    for make in (gpipe, one_forward_one_backward):
        ops = make(stages, micro_batches=micro_batches)
        timeline = simulate(ops, [BP] * stages, backprop=True)
        ideal = (micro_batches + stages - 1) * 3.0
        assert timeline.makespan == pytest.approx(ideal, rel=1e-12), make
        share = micro_batches / (micro_batches + stages - 1)
        assert timeline.utilisation == pytest.approx(share, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "ratio"), [(1, 2.06), (2, 1.65), (4, 1.50)])
def test_local_learning_over_one_forward_one_backward(depth: int, ratio: float) -> None:
    """Four devices, eight micro-batches, equal layers; ``depth`` layers per block."""
    # F = B = W per layer; a block needs no gradient at its own input.
    local = BlockTimes(forward=depth, backward=depth + depth - 1.0)
    batches = 2000
    ours = simulate(pipelined(4, depth=4, batches=8 * batches), [local] * 4).makespan / batches
    bp = BlockTimes(forward=depth, backward=2.0 * depth)
    theirs = simulate(
        one_forward_one_backward(4, micro_batches=8), [bp] * 4, backprop=True
    ).makespan
    assert theirs / ours == pytest.approx(ratio, abs=0.01)


def test_slots_under_jitter() -> None:
    """Throughput of eight jittering blocks, as a share of blocks that never wait."""
    blocks, count = 8, 3000
    share = {}
    for slots in (1, 2, 3):
        generator = random.Random(1)
        ops = pipelined(blocks, depth=blocks, batches=count, slots=slots)
        drawn = {
            (op.block, op.micro_batch): max(0.0, generator.gauss(1.0, 0.2))
            for op in ops
            if op.kind is Kind.FORWARD
        }

        def duration(op: Op, drawn: dict[tuple[int, int], float] = drawn) -> float:
            return drawn[op.block, op.micro_batch] if op.kind is Kind.FORWARD else 0.0

        share[slots] = count / simulate(ops, duration, slots=slots).makespan
    assert share[1] < 0.5  # neighbours take turns
    assert 0.8 < share[2] < 0.9
    assert 0.94 < share[3] < 1.0


def test_memory_of_one_block_and_of_all() -> None:
    saved = [100, 400, 200]
    times = [LOCAL] * 3
    alone = sequential(3, batches=3)
    assert peak_activation_bytes(alone, simulate(alone, times, lanes=1), saved) == 400
    ops = pipelined(3, depth=3, batches=5)
    assert peak_activation_bytes(ops, simulate(ops, times), saved) == 700
    rings = peak_activation_bytes(ops, simulate(ops, times), saved, [10, 20], slots=2)
    assert rings == 700 + 2 * 30


def test_stages_of_backprop_hold_what_they_must() -> None:
    stages, micro_batches = 4, 8
    held = {}
    for make in (gpipe, one_forward_one_backward):
        ops = make(stages, micro_batches=micro_batches)
        timeline = simulate(ops, [BP] * stages, backprop=True)
        held[make] = peak_activation_bytes(ops, timeline, [1] * stages)
    assert held[gpipe] == stages * micro_batches
    assert held[one_forward_one_backward] == 4 + 3 + 2 + 1


@pytest.mark.parametrize("blocks", [1, 2, 4])
def test_workers_reach_the_closed_forms(blocks: int) -> None:
    """A worker per block is a lane per block; one worker does everything in turn."""
    for batches in (1, 5):
        ops = pipelined(blocks, depth=blocks, batches=batches)
        everyone = simulate_workers(ops, [LOCAL] * blocks, workers=blocks)
        closed = (blocks - 1) * 3.0 + batches * STEP
        # A worker that waits for its step cannot take a later one: filling costs up to one more
        # step of every block, once.
        assert closed - 1e-9 <= everyone.makespan <= closed + (blocks - 1) * STEP
        if blocks <= 2 or batches == 1:
            assert everyone.makespan == pytest.approx(closed, rel=1e-12)
        alone = simulate_workers(ops, [LOCAL] * blocks, workers=1)
        assert alone.makespan == pytest.approx(blocks * batches * STEP)
        assert alone.utilisation == pytest.approx(1)


def test_two_workers_share_four_blocks() -> None:
    ops = pipelined(4, depth=2, batches=50)
    timeline = simulate_workers(ops, [LOCAL] * 4, workers=2)
    # Nothing is shorter than half the work; filling costs less than a step or two.
    assert 0.0 <= timeline.makespan - 50 * 4 * STEP / 2 < 2 * STEP
    with pytest.raises(ValueError, match="workers: expected at least 1, got 0"):
        simulate_workers(ops, [LOCAL] * 4, workers=0)
    with pytest.raises(ValueError, match="for which it waits"):
        simulate_workers(ops[4:], [LOCAL] * 4, workers=2)


def test_bad_input() -> None:
    ops = sequential(2)
    with pytest.raises(ValueError, match="duration: expected 2 blocks, got 1"):
        simulate(ops, [LOCAL])
    with pytest.raises(ValueError, match="slots: expected at least 1, got 0"):
        simulate(ops, [LOCAL] * 2, slots=0)
    with pytest.raises(ValueError, match="waits for an operation that never runs"):
        simulate([Op(0, 1, 0, Kind.FORWARD)], lambda op: 1.0)
    assert simulate([], []).makespan == 0
