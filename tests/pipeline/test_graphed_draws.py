"""Dropout in captured steps: the random numbers of one block at a time, on a simulated device."""

from __future__ import annotations

import pytest
import torch
from local_blocks import adam, data, everything, network
from tolerance import assert_same_bits
from torch import Tensor, nn

from bll_kernels.pipeline import graphed
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.simulated_device import SimulatedDevice

Feed = list[tuple[Tensor, Tensor]]


def outcome(executor: Executor, feed: Feed, *, at_once: bool) -> list[Tensor]:
    """All that training leaves behind."""
    results = executor.run(feed) if at_once else [executor.step(x, y) for x, y in feed]
    losses = [loss for result in results for loss in result.losses.values()]
    return [*everything(executor), *losses, *(result.output for result in results)]


def batches(sizes: list[int]) -> Feed:
    return [data(number, size, 6, 1)[0] for number, size in enumerate(sizes)]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert_same_bits(a, b)


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("micro_batches", [1, 3])
def test_graphs_draw_what_sequential_draws(micro_batches: int, at_once: bool) -> None:
    # A new shape in the middle of a run: its first step is no replay.
    feed = batches([6, 6, 6, 12, 6, 12, 12, 6])
    reference = Executor(network(1, 3, 6), adam, micro_batches=micro_batches, seed=4)
    want = outcome(reference, feed, at_once=at_once)
    for seed in range(4):
        executor = Executor(
            network(1, 3, 6),
            adam,
            mode="graphed",
            micro_batches=micro_batches,
            seed=4,
            device=SimulatedDevice(seed),
        )
        assert_same(outcome(executor, feed, at_once=at_once), want)
        assert executor.draws == [True, True, False]


def test_a_stream_for_each_block_and_micro_batch_that_draws() -> None:
    device = SimulatedDevice()
    given: list[int] = []
    capture = device.capture

    def counted(work, streams=()):  # type: ignore[no-untyped-def]
        given.append(len(set(map(id, streams))))
        return capture(work, streams)

    device.capture = counted  # type: ignore[method-assign]
    executor = Executor(network(1, 3, 6), adam, mode="graphed", micro_batches=2, device=device)
    for x, y in batches([6, 6, 6]):
        executor.step(x, y)
    assert given == [2 * 2]


def test_random_numbers_of_the_caller_are_left_alone() -> None:
    executor = Executor(network(1, 3, 6), adam, mode="graphed", device=SimulatedDevice())
    feed = batches([6, 6, 6])
    torch.manual_seed(3)
    for x, y in feed:
        executor.step(x, y)
    got = torch.rand(3)
    torch.manual_seed(3)
    assert_same_bits(got, torch.rand(3))


def test_without_new_seeds_a_replay_repeats_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see it: a replay alone draws on from where the last one ended."""
    feed = batches([6, 6, 6])
    want = outcome(Executor(network(1, 3, 6), adam), feed, at_once=False)
    monkeypatch.setattr(graphed, "seed_streams", lambda *_: None)
    executor = Executor(network(1, 3, 6), adam, mode="graphed", device=SimulatedDevice())
    found = outcome(executor, feed, at_once=False)
    assert any(not torch.equal(a, b) for a, b in zip(found, want, strict=True))


def test_auto_goes_on_behind_the_batches_that_were_run() -> None:
    """A capture that fails in the middle of a run repeats none of the batches before it."""
    feed = batches([6] * 60)

    class Refusing(SimulatedDevice):
        def capture(self, work, streams=()):  # type: ignore[no-untyped-def]
            raise RuntimeError("operation not permitted when stream is capturing")

    def blocks() -> list:
        torch.manual_seed(0)
        return network(1, 2, 6)

    reference = Executor(blocks(), adam)
    other = Executor(blocks(), adam, mode="auto", device=Refusing())
    parts = [feed[:4], feed[4:8], feed[8:12], feed[12:20]]
    want = [tensor for part in parts for tensor in outcome(reference, part, at_once=True)]
    assert_same([t for part in parts for t in outcome(other, part, at_once=True)], want)
    assert other.choice is not None and "graphed" in other.choice.dropped
    assert other.batches_done == reference.batches_done == 20


def test_dropout_alone_is_a_different_number_in_every_batch() -> None:
    class Body(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(torch.ones_like(x), 0.5)

    blocks = network(1, 1, 6)
    blocks[0].body = nn.Sequential(Body(), nn.Linear(6, 5, bias=False))
    with torch.no_grad():
        blocks[0].body[1].weight.fill_(0.0)
        blocks[0].body[1].weight[:, 0] = 1.0
    still = lambda p: torch.optim.SGD(p, lr=0.0)  # noqa: E731
    executor = Executor(blocks, still, mode="graphed", device=SimulatedDevice())
    outputs = [executor.step(x, y).output for x, y in batches([16] * 5)]
    assert len({tuple(output.flatten().tolist()) for output in outputs}) == 5
