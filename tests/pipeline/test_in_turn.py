"""Batches by the programs of all blocks in turn: the same bits, faults named, no shortcuts."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import pytest
import torch
from local_blocks import LocalBlock
from tolerance import assert_same_bits
from torch import Tensor, nn
from wrapped_nets import adam, batches, wrapped

import bll
from bll_kernels.optim import BlockSGD
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.in_turn import InTurn
from bll_kernels.pipeline.traced import TracedStep


def calm(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network that draws no random numbers."""
    model = wrapped(name, dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For every batch, whether it was served at once."""
    found: list[bool] = []
    step = InTurn.step

    def seen(self: InTurn, x: Tensor, labels: Tensor, micro_batch: int) -> object:
        known = step(self, x, labels, micro_batch)
        found.append(known is not None)
        return known

    monkeypatch.setattr(InTurn, "step", seen)
    return found


def sgd(parameters: Sequence[Tensor]) -> BlockSGD:
    return BlockSGD(parameters, lr=0.05, momentum=0.9)


def torch_adam(parameters: Sequence[Tensor]) -> torch.optim.Adam:
    return torch.optim.Adam(parameters, lr=0.01, fused=True)


def assert_same_state(left: nn.Module, right: nn.Module) -> None:
    want = right.state_dict()
    for key, value in left.state_dict().items():
        assert_same_bits(value, want[key])


@pytest.mark.parametrize("factory", [adam, sgd, torch_adam])
@pytest.mark.parametrize("name", ["mlp", "convolutional"])
def test_its_bits_are_those_of_steps_that_are_watched(
    name: str, factory: Callable[[Sequence[Tensor]], torch.optim.Optimizer], served: list[bool]
) -> None:
    feed = batches(name, torch.float32, 7)
    models = [calm(name) for _ in range(2)]
    runs = [bll.executor(model, factory, local_step="traced") for model in models]
    for number, (x, y) in enumerate(feed):
        # A schedule of the learning rate, and a gradient somebody else has left.
        for run, model in zip(runs, models, strict=True):
            for optimizer in run.optimizers:
                optimizer.param_groups[0]["lr"] = 0.02 / (number + 1)
            if number == 4:
                weight = next(iter(model.parameters()))
                weight.grad = torch.full_like(weight, 0.5)
        left = runs[0].step(x, y)
        with runs[1].watched(Recorder()):
            right = runs[1].step(x, y)
        assert_same_bits(left.output, right.output)
        for block, loss in left.losses.items():
            assert_same_bits(loss, right.losses[block])
        assert all(p.grad is None for model in models for p in model.parameters())
    assert served == [False, False, True, True, True, True, True]
    assert_same_state(*models)
    for a, b in zip(runs[0].optimizers, runs[1].optimizers, strict=True):
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=0, atol=0)


def test_its_bits_are_those_of_overlapped_blocks(served: list[bool]) -> None:
    feed = batches("mlp", torch.float32, 6)
    models = [calm("mlp") for _ in range(2)]
    runs = [bll.executor(model, adam, mode=mode) for model, mode in
            zip(models, ("sequential", "pipelined"), strict=True)]  # fmt: skip
    for left, right in zip(*[run.run(feed) for run in runs], strict=True):
        assert_same_bits(left.output, right.output)
    assert served.count(True) == 4
    assert_same_state(*models)


def test_what_the_programs_depend_on_is_looked_at(served: list[bool]) -> None:
    models = [calm("mlp") for _ in range(2)]
    runs = [bll.executor(models[0], sgd), bll.executor(models[1], sgd, local_step="autograd")]
    x, y = batches("mlp", torch.float32, 1)[0]

    def steps(expected: list[bool], *batch: Tensor) -> None:
        for want in expected:
            served.clear()
            left, right = (run.step(*batch) for run in runs)
            assert served[0] is want
            torch.testing.assert_close(left.output, right.output, rtol=1e-4, atol=1e-5)

    steps([False, False, True], x, y)
    steps([False, False, True], x[:4], y[:4])
    steps([True], x, y)
    for model in models:
        model[0][1].eval()
    steps([False, False, True], x, y)
    for model in models:
        model.get_parameter("1.0.weight").data = model.get_parameter("1.0.weight").data.clone()
    steps([False, False, True], x, y)
    for model in models:
        # In place: the programs read the very tensors.
        model.load_state_dict({key: value / 2 for key, value in model.state_dict().items()})
    steps([True], x, y)
    # Another step in the place of one of them is asked.
    seen = []

    class Counted:
        def __init__(self, step: TracedStep) -> None:
            self.step, self.path = step, step.path
            self.loss, self.backward = step.loss, step.backward
            self.update, self.drop = step.update, step.drop

        def forward(self, x: Tensor, labels: Tensor) -> object:
            seen.append(len(x))
            return self.step.forward(x, labels)

    step = runs[0].steps[1]
    assert isinstance(step, TracedStep)
    runs[0].steps[1] = Counted(step)  # type: ignore[assignment]
    steps([False, False], x, y)
    assert seen == [8, 8]
    runs[0].steps[1] = step
    steps([True], x, y)


@pytest.mark.parametrize("why", ["micro-batches", "draws", "autograd"])
def test_other_blocks_are_asked_one_by_one(why: str, served: list[bool]) -> None:
    model = wrapped("mlp", torch.float32) if why == "draws" else calm("mlp")
    run = bll.executor(
        model,
        adam,
        micro_batches=2 if why == "micro-batches" else 1,
        local_step="autograd" if why == "autograd" else "auto",
    )
    for x, y in batches("mlp", torch.float32, 4):
        run.step(x, y)
    assert not any(served)


def state(run: Executor) -> list[Tensor]:
    found = [x for block in run.blocks for x in (*block.parameters(), *block.buffers())]  # type: ignore[attr-defined]
    for optimizer in run.optimizers:
        found += [x for own in optimizer.state.values() for x in own.values()]
    return [x.detach() for x in found]


def test_a_fault_is_named_and_the_next_step_is_right(served: list[bool]) -> None:
    feed = batches("mlp", torch.float32, 6)
    models = [calm("mlp") for _ in range(2)]
    runs = [bll.executor(model, adam, local_step="traced") for model in models]
    x, y = feed[3]
    for run in runs:
        run.run(feed[:3])
    with pytest.raises((RuntimeError, ValueError, IndexError), match="labels: exp") as caught:
        runs[0].run([feed[4], (x, y + 5)])
    with runs[1].watched(Recorder()), pytest.raises((RuntimeError, ValueError, IndexError)) as same:
        runs[1].run([feed[4], (x, y + 5)])
    assert caught.value.__notes__ == same.value.__notes__
    assert caught.value.__notes__ == ["in block '0', loss of micro-batch 1"]
    for left, right in zip(*map(state, runs), strict=True):
        assert_same_bits(left, right)
    served.clear()
    runs[0].step(*feed[5])
    assert served == [True]
    runs[1].step(*feed[5])
    assert_same_state(*models)


class Planted(Exception):
    """A type of its own."""


@pytest.mark.parametrize("kept", [True, False])
def test_a_fault_in_an_update_names_it_and_keeps_no_activations(
    kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bll.executor(calm("mlp"), adam, local_step="traced")
    feed = batches("mlp", torch.float32, 4)
    run.run(feed)

    def fails(*_: object, **__: object) -> None:
        raise Planted("late")

    # Ordinary updates have their gradients checked.
    monkeypatch.setattr(run.steps[2], "_step_checked", fails)
    gc.collect()
    before = shapes()
    with pytest.raises(Planted) as caught:
        run.run([*feed[:1], feed[1]])
    assert caught.value.__notes__ == ["in block '2', update of micro-batch 0"]
    if not kept:
        caught.value.__traceback__ = None
    gc.collect()
    assert shapes() == before


def shapes() -> int:
    """Tensors of a batch of outputs or inputs of a block that live."""
    things = [thing for thing in gc.get_objects() if type(thing) is Tensor]
    return sum(tuple(thing.shape) in ((8, 16), (8, 12)) for thing in things)


def test_blocks_without_modules_are_served(served: list[bool]) -> None:
    """The executor's own protocol, without `trace_key`: one by one, as before."""
    torch.manual_seed(0)
    blocks = [LocalBlock("only", nn.Linear(4, 5), 5, last=True)]
    run = Executor(blocks, adam)
    for _ in range(3):
        run.step(torch.randn(6, 4), torch.randint(5, (6,)))
    assert not any(served)
    assert run.paths == {"only": "autograd"}
