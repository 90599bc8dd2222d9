"""The law of memory against what the runs really keep."""

from __future__ import annotations

import time
from typing import Any

import pytest
from local_blocks import LocalBlock, adam, data, network
from torch import nn

from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.memory import ActivationMeter, activation_bytes
from bll_kernels.pipeline.schedule import Op, pipelined
from bll_kernels.pipeline.step import LocalStep

FLOAT = 4


def law(meter: ActivationMeter, executor: Executor, batches: int) -> int:
    """The documented bound for a run, from what single forwards saved."""
    blocks = len(executor.blocks)
    ops = pipelined(
        blocks,
        depth=executor.depth,
        micro_batches=executor.micro_batches,
        batches=batches,
        slots=executor.slots,
    )
    return activation_bytes(
        ops,
        [meter.private[block] for block in range(blocks)],
        [meter.outputs[block] for block in range(blocks)],
        depth=executor.depth,
        slots=executor.slots,
    )


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("slots", [1, 2, 3])
def test_measured_peak_obeys_the_law(depth: int, slots: int) -> None:
    for micro_batches, width in ((1, 16), (3, 8)):
        executor = Executor(
            network(3, 4, width, dropout=0.3),
            adam,
            mode="sequential" if depth == 1 else "pipelined",
            depth=depth,
            micro_batches=micro_batches,
            slots=slots if depth > 1 else 2,
        )
        feed = data(3, 12, width, 5)
        executor.run(feed)
        with executor.watched(ActivationMeter()) as meter:
            executor.run(feed)
        assert meter.live == 0
        bound = law(meter, executor, 5)
        if depth == 1:
            assert meter.peak == bound
        else:
            assert 0.3 * bound < meter.peak <= 1.05 * bound


class _SlowBackward:
    """A step whose backward lasts long enough for the others to catch up."""

    def __init__(self, step: LocalStep) -> None:
        self.step, self.path = step, step.path
        self.forward, self.loss = step.forward, step.loss
        self.update, self.drop = step.update, step.drop

    def backward(self, saved: Any) -> None:
        time.sleep(0.03)
        self.step.backward(saved)


def test_blocks_that_run_at_once_come_close_to_the_law() -> None:
    blocks = [
        LocalBlock(f"b{i}", nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()), 8)
        for i in range(3)
    ]
    executor = Executor(blocks, adam, mode="pipelined")
    executor.steps = [_SlowBackward(step) for step in executor.steps]
    with executor.watched(ActivationMeter()) as meter:
        executor.run(data(0, 64, 8, 8))
    assert meter.live == 0
    assert 0.8 * law(meter, executor, 8) <= meter.peak <= law(meter, executor, 8)


def test_what_a_block_saves_counted_by_hand() -> None:
    batch, width = 10, 6
    body = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
    executor = Executor([LocalBlock("b", body, width)], adam)
    with executor.watched(ActivationMeter()) as meter:
        executor.step(*data(0, batch, width, 1)[0])
    # The input is the caller's, ReLU saves the output itself; batch norm saves its input, and its
    # mean and inverse deviation.
    assert meter.outputs == {0: batch * width * FLOAT}
    own = (batch * width + 2 * width) * FLOAT
    running = 2 * width * FLOAT
    assert meter.private[0] in (own, own + running)
    assert meter.peak == meter.private[0] + meter.outputs[0]


def peak(blocks: int, depth: int, slots: int = 2, batches: int = 6) -> int:
    """The law where a block saves 100 and hands on 1."""
    ops = pipelined(blocks, depth=depth, batches=batches, slots=slots)
    return activation_bytes(ops, [100] * blocks, [1] * blocks, depth=depth, slots=slots)


def test_the_law_as_a_table() -> None:
    # One block in flight: its own, its input, its output, and outputs of earlier batches.
    assert [peak(3, 1), peak(3, 1, batches=1)] == [100 + 2 + 5, 100 + 2]
    # All in flight: both borders full, and the outputs of six batches at the end.
    assert [peak(3, 3, slots) for slots in (1, 2, 3)] == [302 + 6, 304 + 6, 304 + 6]
    # Two of four: 1 and 2 in flight fill border 1 and hold a slot of its neighbours.
    assert [peak(4, depth) for depth in (2, 3, 4)] == [204 + 6, 305 + 6, 406 + 6]
    ops = pipelined(2, depth=1)
    assert activation_bytes(ops, [7, 90], [3, 5], depth=1) == 90 + 5 + 3
    with pytest.raises(ValueError, match="expected 2 blocks, got 1 and 2"):
        activation_bytes(ops, [1], [1, 2], depth=1)
    no_ops: list[Op] = []
    with pytest.raises(ValueError, match="expected 0 blocks, got 1 and 1"):
        activation_bytes(no_ops, [1], [1], depth=1)
