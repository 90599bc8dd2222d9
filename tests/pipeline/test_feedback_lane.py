"""Chained feedback in a lane of its own: older messages, the same ones whatever runs when."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor, nn

import bll
from bll.executor import feedback_path, wrapped_blocks
from bll.feedback_chain import FeedbackBlock
from bll.feedback_lane import ChainedFeedback
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.feedback import feedback_versions, lag
from bll_kernels.pipeline.schedule import pipelined
from bll_kernels.pipeline.simulated_device import SimulatedDevice
from bll_kernels.pipeline.stream_run import StreamRun
from bll_kernels.pipeline.worker import Worker

WIDTH, CLASSES = 6, 4
Feed = list[tuple[Tensor, Tensor]]


def adam(parameters: Sequence[Tensor]) -> BlockAdam:
    return BlockAdam(parameters, lr=0.02)


def wrapped(layers: int = 4, seed: int = 0, rule: str = "bll") -> nn.Module:
    """Some layers with chained feedback, and a head, which has none."""
    torch.manual_seed(seed)
    body = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.1))
        for _ in range(layers)
    ]
    options = {} if rule == "ccl" else {"feedback": "chained"}
    return bll.wrap(
        nn.Sequential(*body, nn.Linear(WIDTH, CLASSES)),
        blocks=[str(index) for index in range(layers)],
        rule=bll.get_rule(rule, feedback_width=5, **options),
        num_classes=CLASSES,
        example=torch.randn(3, WIDTH),
    )


def feed(count: int, size: int = 12, seed: int = 1) -> Feed:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, WIDTH, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def make(model: nn.Module, **options: Any) -> Executor:
    blocks = wrapped_blocks(model)
    path = feedback_path(blocks[0].handle)
    return Executor(blocks, adam, mode="pipelined", feedback=path, **options)


def outcome(run: Executor, model: nn.Module, parts: Sequence[Feed]) -> list[Tensor]:
    found: list[Tensor] = []
    for part in parts:
        for result in run.run(part):
            found += [result.output, *result.losses.values()]
    for optimizer in run.optimizers:
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    return [*(value.clone() for value in model.state_dict().values()), *found]


def assert_same(left: list[Tensor], right: list[Tensor]) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert_same_bits(a, b)


def one_at_a_time(model: nn.Module, part: Feed) -> list[Tensor]:
    """By hand: one block at a time, with weights of feedback blocks kept from earlier batches.

    With all blocks in flight and one micro-batch, block k has updated behind k batches less than
    the first block when that begins a batch.
    """
    run = bll.executor(model, adam)
    messages = [message for message in model.bll.messages if isinstance(message, FeedbackBlock)]
    history = [[(m.state_weight.detach().clone(), m.state_bias.detach().clone())] for m in messages]
    found: list[Tensor] = []
    for batch, (x, labels) in enumerate(part):
        state = None
        for block in reversed(range(1, len(messages))):
            weight, bias = history[block][max(0, batch - block)]
            state = torch.tanh(
                weight.T + bias if state is None else torch.addmm(bias, state, weight.T)
            )
            # In place, as traced steps read that memory.
            held = messages[block - 1]._received
            messages[block - 1].receive(state.clone() if held is None else held.copy_(state))
        result = run.step(x, labels)
        found += [result.output, *result.losses.values()]
        for own, m in zip(history, messages, strict=True):
            own.append((m.state_weight.detach().clone(), m.state_bias.detach().clone()))
    for message in messages:
        message.receive(None)
    for optimizer in run.optimizers:
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    return [*(value.clone() for value in model.state_dict().values()), *found]


@pytest.mark.parametrize("rule", ["bll", "ccl"])
def test_it_is_one_block_at_a_time_with_older_messages(rule: str) -> None:
    part = feed(9)
    by_hand = wrapped(rule=rule)
    want = one_at_a_time(by_hand, part)
    for device in (None, SimulatedDevice(3)):
        model = wrapped(rule=rule)
        assert_same(outcome(make(model, device=device), model, [part]), want)
    # And it is not what fresh messages teach.
    fresh = wrapped(rule=rule)
    other = outcome(bll.executor(fresh, adam), fresh, [part])
    assert any(not torch.equal(a, b) for a, b in zip(other, want, strict=True))


def random_schedules(cases: int) -> None:
    generator = random.Random(2)
    for case in range(cases):
        layers, micro_batches = generator.randint(1, 4), generator.randint(1, 3)
        how: dict[str, Any] = {
            "depth": generator.randint(2, layers + 1),
            "micro_batches": micro_batches,
            "slots": generator.randint(1, 3),
            "local_step": "autograd",
        }
        parts = [feed(generator.randint(1, 6), 2 * micro_batches, case) for _ in range(2)]
        outcomes = []
        for device in (None, SimulatedDevice(case), SimulatedDevice(case + 1000)):
            model = wrapped(layers, case)
            outcomes.append(outcome(make(model, device=device, **how), model, parts))
        assert_same(outcomes[1], outcomes[0])
        assert_same(outcomes[2], outcomes[0])


def test_threads_and_lanes_end_with_the_same_bits_in_every_order() -> None:
    random_schedules(8)


@pytest.mark.slow
def test_many_schedules_end_with_the_same_bits() -> None:
    random_schedules(80)


@pytest.mark.parametrize(
    ("guard", "micro_batches"),
    [("_await_published", 1), ("_await_received", 3), ("_await_feedback", 1)],
)
def test_without_an_event_some_order_is_wrong(
    guard: str, micro_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = feed(5)
    how = {"micro_batches": micro_batches, "local_step": "autograd"}
    reference = wrapped(3)
    want = outcome(make(reference, **how), reference, [part])
    monkeypatch.setattr(StreamRun, guard, lambda *_: None)
    wrong = 0
    for seed in range(25):
        model = wrapped(3)
        run = make(model, device=SimulatedDevice(seed), **how)
        try:
            found = outcome(run, model, [part])
        except (RuntimeError, KeyError):
            wrong += 1
            continue
        wrong += any(not torch.equal(a, b) for a, b in zip(found, want, strict=True))
    assert wrong > 0


def test_versions_and_what_the_certificate_says() -> None:
    ops = pipelined(5, depth=5, batches=6)
    versions = feedback_versions(ops, 5)
    assert versions == [tuple(max(0, batch - block) for block in range(5)) for batch in range(6)]
    assert [lag(versions, block) for block in range(5)] == [0, 1, 2, 3, 4]
    # A batch of many micro-batches is over everywhere before the next but one begins.
    parts = feedback_versions(pipelined(3, depth=3, micro_batches=4, batches=4), 3, micro_batches=4)
    assert parts == [(0, 0, 0), (1, 0, 0), (2, 1, 1), (3, 2, 2)]
    in_turn = feedback_versions(pipelined(3, depth=1, batches=4), 3)
    assert in_turn == [(batch,) * 3 for batch in range(4)]
    lines = [str(line) for line in make(wrapped()).certificate]
    assert [line.split(" (")[0] for line in lines] == [
        "0: stale by 3", "1: stale by 3", "2: stale by 3", "3: exact", "output: exact",
    ]  # fmt: skip
    assert "feedback lane: 1, 1 older; feedback lane: 2, 2 older" in lines[0]
    # One block in flight reads the weights themselves.
    assert all(line.stale_by == 0 for line in make(wrapped(), depth=1).certificate)
    assert make(wrapped(), depth=1).feedback is None


def test_a_step_of_one_batch_is_exact() -> None:
    """Everything it reads was there before it began."""
    part = feed(5)
    model, twin = wrapped(), wrapped()
    run, other = make(model, micro_batches=3), bll.executor(twin, adam, micro_batches=3)
    for x, labels in part:
        assert_same_bits(run.step(x, labels).output, other.step(x, labels).output)
    for key, value in model.state_dict().items():
        assert_same_bits(value, twin.state_dict()[key])


def test_after_a_run_messages_follow_the_weights_again() -> None:
    model = wrapped()
    make(model).run(feed(3))
    first, second = model.bll.messages[0], model.bll.messages[1]
    before = first.rows()
    with torch.no_grad():
        second.state_weight.add_(1.0)
    assert not torch.equal(first.rows(), before)


@pytest.mark.parametrize("on_device", [False, True])
def test_a_fault_in_the_lane_surfaces_and_the_next_run_is_right(on_device: bool) -> None:
    device = SimulatedDevice(1) if on_device else None
    model, twin = wrapped(), wrapped()
    run, other = make(model, device=device), make(twin)
    assert isinstance(run.feedback, ChainedFeedback)
    path, error, calls = run.feedback.run, ZeroDivisionError("planted"), []

    def fails(published: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise error
        return path(published)

    run.feedback.run = fails  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError) as caught:
        run.run(feed(6))
    assert caught.value is error
    assert error.__notes__ == ["in the feedback lane, at batch 2"]
    assert all(t.ended.is_set() for t in threading.enumerate() if isinstance(t, Worker))
    run.feedback.run = path  # type: ignore[method-assign]
    assert all(message._received is None for message in model.bll.messages)
    twin.load_state_dict(model.state_dict())
    for mine, theirs in zip(run.optimizers, other.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    assert_same(outcome(run, model, [feed(4)]), outcome(other, twin, [feed(4)]))


def test_bll_executor_gives_chained_feedback_its_lane() -> None:
    run = bll.executor(wrapped(), adam, mode="pipelined")
    assert run.feedback is not None and max(line.stale_by for line in run.certificate) == 3
    with pytest.raises(ValueError, match="reads next-feedback, which other blocks change"):
        bll.executor(wrapped(), adam, mode="auto")
    with pytest.raises(ValueError, match="reads next-feedback, which other blocks change"):
        bll.executor(wrapped(), adam, mode="pipelined", batched_blocks=True)
    direct = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    bll.wrap(direct, ["0"], num_classes=3, example=torch.zeros(2, 4))
    assert bll.executor(direct, mode="pipelined").feedback is None
    with pytest.raises(TypeError, match="messages: expected a FeedbackBlock each, got ClassTable"):
        ChainedFeedback(list(direct.bll.messages))
