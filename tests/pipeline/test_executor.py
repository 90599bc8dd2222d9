"""The executor on the CPU: the same bits in every mode, and faults that surface once."""

from __future__ import annotations

import copy
import random
import threading
import time

import pytest
import torch
from local_blocks import LocalBlock, adam, data, everything, network
from tolerance import assert_same_bits
from torch import Tensor, nn

import bll_kernels as bk
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.worker import Worker


@pytest.mark.slow
def test_two_hundred_networks_end_with_the_bits_of_sequential() -> None:
    generator = random.Random(5)
    for case in range(200):
        blocks, width = generator.randint(1, 6), generator.choice([4, 9, 16])
        micro_batches, batches = generator.randint(1, 4), generator.randint(1, 4)
        batch = micro_batches * generator.randint(2, 5)
        feed = data(case, batch, width, batches)
        reference = Executor(network(case, blocks, width), adam, micro_batches=micro_batches)
        want = [reference.step(x, y) for x, y in feed]
        other = Executor(
            network(case, blocks, width),
            adam,
            mode="pipelined",
            depth=generator.randint(1, blocks),
            micro_batches=micro_batches,
            slots=generator.randint(1, 3),
        )
        got = other.run(feed) if case % 2 else [other.step(x, y) for x, y in feed]
        for left, right in zip(everything(other), everything(reference), strict=True):
            assert_same_bits(left, right)
        for result, truth in zip(got, want, strict=True):
            assert_same_bits(result.output, truth.output)
            assert list(result.losses) == list(truth.losses)
            for name, loss in result.losses.items():
                assert_same_bits(loss, truth.losses[name])


def test_sequential_is_an_ordinary_local_loop() -> None:
    blocks, twins = network(1, 3, 8, dropout=0.0), network(1, 3, 8, dropout=0.0)
    executor = Executor(blocks, adam)
    optimizers = [adam(block.parameters()) for block in twins]
    for x, y in data(0, 12, 8, 4):
        result = executor.step(x, y)
        feature = x
        for block, optimizer in zip(twins, optimizers, strict=True):
            output = block.body(feature.detach())
            if block.last:
                loss = nn.functional.cross_entropy(output, y)
            else:
                loss = bk.class_evidence_loss(output, block.table, y, "gaussian")
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            torch.testing.assert_close(result.losses[block.name], loss.detach())
            feature = output
        torch.testing.assert_close(result.output, feature.detach())
    for left, right in zip(blocks, twins, strict=True):
        for p, q in zip(left.parameters(), right.parameters(), strict=True):
            torch.testing.assert_close(p, q)


def test_blocks_overlap() -> None:
    """Sleeping blocks take the time of the pipeline, not of the sum."""

    class Sleeping(LocalBlock):
        def forward(self, x: Tensor) -> Tensor:
            time.sleep(0.02)
            return super().forward(x)

    def seconds(mode: str) -> float:
        blocks = [Sleeping(f"b{i}", nn.Linear(4, 4), 4) for i in range(4)]
        executor = Executor(blocks, adam, mode=mode)
        feed = data(0, 4, 4, 12)
        start = time.perf_counter()
        executor.run(feed)
        return time.perf_counter() - start

    # 48 forwards in turn, or 12 and the filling: 15.
    assert seconds("pipelined") < 0.6 * seconds("sequential")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["sequential", "pipelined"])
def test_a_fault_surfaces_once_and_the_next_step_is_right(mode: str) -> None:
    generator = random.Random(7)
    for case in range(150):
        blocks = network(case, 4, 6)
        executor = Executor(blocks, adam, mode=mode, micro_batches=2)
        feed = data(case, 8, 6, 3)
        kind, index = generator.choice(["forward", "loss"]), generator.randrange(4)
        at = generator.randint(1, 6)
        blocks[index].fault = (kind, at)
        with pytest.raises(ZeroDivisionError, match=f"planted in {kind}") as caught:
            executor.run(feed)
        assert caught.value.__notes__ == [f"in block 'b{index}', {kind} of micro-batch {at - 1}"]
        assert all(t.ended.is_set() for t in threading.enumerate() if isinstance(t, Worker))
        assert all(p.grad is None for block in blocks for p in block.parameters())
        blocks[index].fault = None
        twins = copy.deepcopy(blocks)
        again = Executor(twins, adam, micro_batches=2)
        for mine, theirs in zip(executor.optimizers, again.optimizers, strict=True):
            theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
        again.batches_done = executor.batches_done
        executor.step(*feed[0])
        again.step(*feed[0])
        for left, right in zip(everything(executor), everything(again), strict=True):
            assert_same_bits(left, right)


def test_which_blocks_draw_is_found_out() -> None:
    executor = Executor(network(0, 3, 6), adam, mode="pipelined")
    executor.step(*data(0, 4, 6, 1)[0])
    assert executor.draws == [True, True, False]


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    executor = Executor(network(0, 3, 6), adam)
    torch.manual_seed(3)
    executor.step(*data(0, 4, 6, 1)[0])
    got = torch.rand(3)
    torch.manual_seed(3)
    assert_same_bits(got, torch.rand(3))


def test_two_threads_are_refused() -> None:
    blocks = network(0, 2, 6)
    entered, leave = threading.Event(), threading.Event()
    forward = blocks[0].forward

    def slow(x: Tensor) -> Tensor:
        entered.set()
        leave.wait(10)
        return forward(x)

    blocks[0].forward = slow  # type: ignore[method-assign]
    executor = Executor(blocks, adam)
    batch = data(0, 4, 6, 1)[0]
    worker = threading.Thread(target=executor.step, args=batch)
    worker.start()
    assert entered.wait(10)
    with pytest.raises(RuntimeError, match="a step is in progress in another thread"):
        executor.step(*batch)
    leave.set()
    worker.join()
    executor.step(*batch)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"mode": "graph"},
            "mode: expected one of sequential, pipelined, graphed, auto, got 'graph'",
        ),
        ({"mode": "pipelined", "depth": 4}, "depth: expected at most 3"),
        ({"micro_batches": 0}, "micro_batches: expected at least 1"),
        ({"slots": 0}, "slots: expected at least 1"),
        ({"threads": 0}, "threads: expected at least 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Executor(network(0, 3, 6), adam, **options)  # type: ignore[arg-type]


def test_bad_batches_are_refused_before_any_block_runs() -> None:
    blocks = network(0, 2, 6)
    executor = Executor(blocks, adam, micro_batches=3)
    x, y = data(0, 6, 6, 1)[0]
    for bad, message in (
        ((x[:4], y[:4]), "x: expected a batch that divides into 3 parts, got 4"),
        ((x[:0], y[:0]), "x: expected a batch that divides into 3 parts, got 0"),
        ((x, y[:3]), "labels: expected 6, one per sample, got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            executor.step(*bad)
    assert blocks[0].calls["forward"] == 0
    with pytest.raises(ValueError, match="blocks: expected one or more of different names"):
        Executor([], adam)
