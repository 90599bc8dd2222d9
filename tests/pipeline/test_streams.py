"""Lanes, events and graphs, on a device that takes every order the events allow."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from faulty import Fault
from local_blocks import LocalBlock, adam, data, everything, network
from tolerance import assert_same_bits
from torch import Tensor, nn

from bll_kernels.optim import BlockSGD
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.graphed import GRAPHS, CaptureError, check_capturable
from bll_kernels.pipeline.memory import ActivationMeter
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.simulated_device import SimulatedDevice
from bll_kernels.pipeline.stream_run import StreamRun

Feed = list[tuple[Tensor, Tensor]]


def outcome(executor: Executor, feed: Feed, *, at_once: bool = True) -> list[Tensor]:
    """All that training leaves behind."""
    results = executor.run(feed) if at_once else [executor.step(x, y) for x, y in feed]
    outputs = [result.output for result in results]
    losses = [loss for result in results for loss in result.losses.values()]
    return [*everything(executor), *outputs, *losses]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert_same_bits(a, b)


def differs(left: list[Tensor], right: list[Tensor]) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(left, right, strict=True))


def random_orders(cases: int) -> None:
    generator = random.Random(11)
    for case in range(cases):
        blocks, width = generator.randint(1, 5), generator.choice([4, 9])
        micro_batches, batches = generator.randint(1, 3), generator.randint(1, 4)
        feed = data(case, micro_batches * generator.randint(2, 4), width, batches)
        reference = Executor(network(case, blocks, width), adam, micro_batches=micro_batches)
        other = Executor(
            network(case, blocks, width),
            adam,
            mode="pipelined",
            depth=generator.randint(1, blocks),
            micro_batches=micro_batches,
            slots=generator.randint(1, 3),
            device=SimulatedDevice(case),
        )
        at_once = case % 2 == 0
        want = outcome(reference, feed, at_once=at_once)
        assert_same(outcome(other, feed, at_once=at_once), want)


def test_every_allowed_order_ends_with_the_bits_of_sequential() -> None:
    random_orders(60)


@pytest.mark.slow
def test_many_allowed_orders_end_with_the_bits_of_sequential() -> None:
    random_orders(300)


@pytest.mark.parametrize("guard", ["_await_input", "_await_slot", "_await_caller", "_join"])
def test_without_an_event_some_order_is_wrong(guard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamRun, guard, lambda self, lane, mark: None)
    feed = data(0, 6, 4, 6)
    want = outcome(Executor(network(0, 3, 4), adam), feed)
    wrong = 0
    for seed in range(30):
        device = SimulatedDevice(seed)
        executor = Executor(network(0, 3, 4), adam, mode="pipelined", device=device)
        # The batch is made in the caller's lane, as by a copy to the device.
        late = [(torch.full_like(x, float("nan")), y) for x, y in feed]
        for (empty, _), (x, _) in zip(late, feed, strict=True):
            device.launch(device.caller(), lambda empty=empty, x=x: empty.copy_(x))
        try:
            wrong += differs(outcome(executor, late), want)
        except (RuntimeError, KeyError):
            wrong += 1
    assert wrong > 0


def test_the_planted_copies_are_right_with_all_events() -> None:
    feed = data(0, 6, 4, 6)
    want = outcome(Executor(network(0, 3, 4), adam), feed)
    for seed in range(30):
        device = SimulatedDevice(seed)
        executor = Executor(network(0, 3, 4), adam, mode="pipelined", device=device)
        late = [(torch.full_like(x, float("nan")), y) for x, y in feed]
        for (empty, _), (x, _) in zip(late, feed, strict=True):
            device.launch(device.caller(), lambda empty=empty, x=x: empty.copy_(x))
        assert_same(outcome(executor, late), want)


def test_lanes_that_wait_for_each_other_are_found() -> None:
    device = SimulatedDevice()
    first, second = device.lane(0), device.lane(1)
    early, late = device.record(second), device.record(second)
    second.queue.clear()
    device.wait(first, early)
    with pytest.raises(RuntimeError, match="1 lanes wait for marks that nobody reaches"):
        device.settle()
    device.wait(first, late)
    with pytest.raises(RuntimeError, match="nobody reaches"):
        device.synchronize()


def plain(seed: int, blocks: int = 3, width: int = 6) -> list[Any]:
    """Blocks that draw no random numbers."""
    return network(seed, blocks, width, dropout=0.0)


def without_dropout(blocks: list[Any]) -> list[Any]:
    for block in blocks:
        block.body = nn.Sequential(*(m for m in block.body if not isinstance(m, nn.Dropout)))
    return blocks


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_graphs_end_with_the_bits_of_sequential(micro_batches: int) -> None:
    # Shapes that come back, new ones, and more of them than graphs are kept.
    sizes = [8, 8, 8, 4, 4, 8, 4, 12, 16, 20, 12, 16, 20, 12, 16, 20, 8, 8]
    feed = [data(n, size, 6, 1)[0] for n, size in enumerate(sizes)]
    reference = Executor(without_dropout(plain(1)), adam, micro_batches=micro_batches)
    want = outcome(reference, feed)
    for seed in range(5):
        executor = Executor(
            without_dropout(plain(1)),
            adam,
            mode="graphed",
            micro_batches=micro_batches,
            device=SimulatedDevice(seed),
        )
        assert_same(outcome(executor, feed), want)
        assert executor.batches_done == len(feed)
        assert executor._graphs is not None
        assert len(executor._graphs._graphs) == GRAPHS


def graphed(blocks: list[Any], **options: Any) -> tuple[Executor, list[int]]:
    """An executor of graphs, and the numbers of the steps that it captures."""
    device = SimulatedDevice()
    executor = Executor(blocks, adam, mode="graphed", device=device, **options)
    found: list[int] = []
    capture = device.capture

    def noted(*given: Any) -> Any:
        found.append(executor.batches_done)
        return capture(*given)

    device.capture = noted  # type: ignore[method-assign]
    return executor, found


def test_a_graph_is_captured_again_when_an_option_of_the_optimiser_changes() -> None:
    feed = data(3, 8, 6, 9)

    def train(executor: Executor) -> list[Tensor]:
        for step, (x, y) in enumerate(feed):
            for optimizer in executor.optimizers:
                optimizer.param_groups[0]["lr"] = 0.01 / (1 + step // 3)
            executor.step(x, y)
        return everything(executor)

    want = train(Executor(without_dropout(plain(2)), adam))
    executor, captured = graphed(without_dropout(plain(2)))
    assert_same(train(executor), want)
    assert len(captured) == 3


def test_a_graph_does_not_outlive_the_state_it_updates() -> None:
    feed = data(3, 8, 6, 8)
    saved: list[Any] = []

    def train(executor: Executor) -> list[Tensor]:
        for step, (x, y) in enumerate(feed):
            if step == 2:
                saved[:] = [copy.deepcopy(o.state_dict()) for o in executor.optimizers]
            if step == 5:
                for optimizer, state in zip(executor.optimizers, saved, strict=True):
                    optimizer.load_state_dict(state)
            executor.step(x, y)
        return everything(executor)

    want = train(Executor(without_dropout(plain(2)), adam))
    executor, captured = graphed(without_dropout(plain(2)))
    assert_same(train(executor), want)
    # Step 5, the first with the loaded state, runs as it is.
    assert captured == [1, 6]


class Keyed(LocalBlock):
    """Tells what its Python code depends on."""

    def buffers(self) -> list[Tensor]:
        return list(self.body.buffers())

    def trace_key(self) -> bool:
        return self.body.training


@pytest.mark.parametrize("local_step", ["autograd", "auto"])
def test_a_graph_is_of_one_mode_of_its_blocks(local_step: str) -> None:
    feed = data(3, 8, 6, 9)

    def blocks() -> list[Any]:
        return [Keyed(b.name, b.body, 6, last=b.last) for b in without_dropout(plain(2))]

    def train(executor: Executor) -> list[Tensor]:
        for step, (x, y) in enumerate(feed):
            if step in (3, 6):
                executor.blocks[0].body.train(step == 6)
            executor.step(x, y)
        return everything(executor)

    want = train(Executor(blocks(), adam, local_step=local_step))
    executor, captured = graphed(blocks(), local_step=local_step)
    assert_same(train(executor), want)
    # Step 3, the first in evaluation mode, runs as it is; the mode that comes back has its graph.
    assert captured == [1, 4]


def test_a_learning_rate_on_another_device_is_refused() -> None:
    weight = torch.zeros(2, device="meta", requires_grad=True)
    check_capturable("b", BlockSGD([weight], lr=0.1))
    check_capturable("b", BlockSGD([weight], lr=torch.tensor(0.1, device="meta")))
    with pytest.raises(ValueError, match=r"learning rate for block 'b' .* got one on cpu"):
        check_capturable("b", BlockSGD([weight], lr=torch.tensor(0.1)))


def test_results_of_a_replay_stay_what_they_are() -> None:
    executor = Executor(without_dropout(plain(1)), adam, mode="graphed", device=SimulatedDevice())
    feed = data(1, 8, 6, 6)
    results = [executor.step(x, y) for x, y in feed]
    kept = [(r.output.clone(), {k: v.clone() for k, v in r.losses.items()}) for r in results]
    executor.run(feed)
    for result, (output, losses) in zip(results, kept, strict=True):
        assert_same_bits(result.output, output)
        for name, loss in losses.items():
            assert_same_bits(result.losses[name], loss)


def test_what_cannot_be_captured_is_refused_before_anything_runs() -> None:
    device = SimulatedDevice()
    with pytest.raises(ValueError, match="graphed needs blocks on a GPU, got blocks on the CPU"):
        Executor(network(0, 2, 6), adam, mode="graphed")

    def make(factory: Callable[[Any], Any]) -> Executor:
        return Executor(network(0, 2, 6), factory, mode="graphed", device=device)

    with pytest.raises(ValueError, match="got Adam with capturable=False"):
        make(lambda p: torch.optim.Adam(p))

    class Bare:
        def step(self) -> None: ...

        def zero_grad(self, set_to_none: bool = True) -> None: ...

    with pytest.raises(ValueError, match="expected an optimiser with param_groups"):
        make(lambda p: Bare())
    make(lambda p: torch.optim.SGD(p, lr=0.1))
    make(lambda p: BlockSGD(p, lr=0.1))
    drawing = make(adam)
    feed = data(0, 6, 6, 2)
    drawing.step(*feed[0])
    # As a block on a GPU that draws from the host's generator.
    drawing.draws_on_host[0] = True
    before = [t.clone() for t in everything(drawing)]
    with pytest.raises(CaptureError, match="block 'b0' draws random numbers on the host"):
        drawing.step(*feed[1])
    assert_same(everything(drawing), before)
    assert drawing.batches_done == 1


def test_a_graph_is_not_watched() -> None:
    executor = Executor(without_dropout(plain(1)), adam, mode="graphed", device=SimulatedDevice())
    with (
        executor.watched(Recorder()),
        pytest.raises(RuntimeError, match="a graph cannot be watched; expected 'pipelined'"),
    ):
        executor.run(data(0, 6, 6, 2))
    assert executor.batches_done == 0


def test_a_failing_capture_spoils_nothing() -> None:
    device = SimulatedDevice()
    executor = Executor(without_dropout(plain(1)), adam, mode="graphed", device=device)
    feed = data(1, 8, 6, 4)
    executor.step(*feed[0])
    before = [t.clone() for t in everything(executor)]
    capture = device.capture

    def refuses(*_: object) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")

    device.capture = refuses  # type: ignore[method-assign]
    with pytest.raises(CaptureError, match="cannot be captured: operation not permitted"):
        executor.step(*feed[1])
    assert_same(everything(executor), before)
    device.capture = capture  # type: ignore[method-assign]
    for x, y in feed[1:]:
        executor.step(x, y)
    assert_same(everything(executor), outcome_of_steps(feed))


def outcome_of_steps(feed: Feed) -> list[Tensor]:
    executor = Executor(without_dropout(plain(1)), adam)
    for x, y in feed:
        executor.step(x, y)
    return everything(executor)


def test_faults_in_lanes() -> None:
    generator = random.Random(3)
    device = SimulatedDevice(3)
    executor = Executor(network(0, 3, 6), adam, mode="pipelined", device=device)
    feed = data(0, 6, 6, 4)
    executor.run(feed)
    for _ in range(60):
        kind = generator.choice(list(Kind))
        error = ZeroDivisionError("planted")
        fault = Fault(
            executor, generator.randrange(3), kind, generator.randrange(4), error, late=True
        )
        with fault, executor.watched(ActivationMeter()) as meter:
            with pytest.raises(ZeroDivisionError) as caught:
                executor.run(feed)
            assert caught.value is error
            assert error.__notes__ == [fault.note]
            error.__traceback__ = None
            del caught
        assert meter.live == 0
        assert all(p.grad is None for block in executor.blocks for p in block.parameters())
        assert all(not lane.queue for lane in device.lanes.values())
        executor.step(*feed[0])


def test_lanes_can_be_recorded() -> None:
    executor = Executor(network(0, 3, 6), adam, mode="pipelined", device=SimulatedDevice())
    with executor.watched(Recorder()) as recorder:
        executor.run(data(0, 6, 6, 4))
    assert len(recorder.events()) == 3 * 4 * 4
