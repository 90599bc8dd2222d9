"""A block's step, its update included, in one compiled call."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor, nn
from wrapped_nets import adam, batches, wrapped

import bll
from bll_kernels.optim import BlockAdam, BlockSGD
from bll_kernels.optim_plain import adam_, adam_decay, adam_rates
from bll_kernels.pipeline import whole
from bll_kernels.pipeline.capture import NotTraceable
from bll_kernels.pipeline.compiled import compile_graph, without_aliases
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.executor import Executor

Batch = tuple[Tensor, Tensor]


@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_adam_in_plain_operations_is_adam(weight_decay: float, decoupled: bool) -> None:
    torch.manual_seed(0)
    parameter = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    own, first, second = parameter.detach().clone(), torch.zeros(5, 3), torch.zeros(5, 3)
    first, second = first.double(), second.double()
    options = {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": weight_decay}
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    reference = kind([parameter], lr=0.1, **options)
    group = {"lr": 0.1, "decoupled_weight_decay": decoupled, **options}
    for step in range(1, 6):
        group["lr"] = reference.param_groups[0]["lr"] = 0.1 / step
        gradient = torch.randn(5, 3, dtype=torch.float64)
        parameter.grad = gradient.clone()
        reference.step()
        rates = torch.tensor(adam_rates(group, step), dtype=torch.float64)
        adam_(own, gradient, first, second, rates, decay=adam_decay(group))
        torch.testing.assert_close(own, parameter.detach(), rtol=1e-12, atol=1e-12)
    state = reference.state[parameter]
    torch.testing.assert_close(first, state["exp_avg"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second, state["exp_avg_sq"], rtol=1e-12, atol=1e-12)


def test_tensors_of_one_memory_become_one() -> None:
    base = torch.arange(6.0).reshape(2, 3)
    held = [base.t(), base, torch.ones(3), base[1]]

    def doubles_and_reads(turned: Tensor, all_: Tensor, other: Tensor, row: Tensor, x: Tensor):
        all_.mul_(2)
        return turned.clone(), row + other + x

    function, distinct, places = without_aliases(doubles_and_reads, held)
    assert len(distinct) == 2 and places == [0, 0, 1, 0]
    turned, row = function(*[tensor.clone() for tensor in distinct], torch.ones(3))
    assert_same_bits(turned, 2 * base.t())
    assert_same_bits(row, 2 * base[1] + 2)
    with pytest.raises(NotTraceable, match="parts of one memory"):
        without_aliases(doubles_and_reads, [base[0], base[1]])


@pytest.mark.slow
def test_a_compiler_sees_what_a_view_reads() -> None:
    base = torch.arange(6.0).reshape(2, 3)

    def doubles_and_reads(turned: Tensor, all_: Tensor, x: Tensor) -> tuple[Tensor]:
        all_.mul_(2)
        return (turned + x,)

    function, distinct, _ = without_aliases(doubles_and_reads, [base.t(), base])
    given = [*distinct, torch.ones(3, 2)]
    (found,) = compile_graph(function, given)(list(given))
    assert_same_bits(base, 2 * torch.arange(6.0).reshape(2, 3))
    assert_same_bits(found, base.t() + 1)


def calm(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A network that draws no random numbers."""
    model = wrapped(name, dtype)
    for module in model.modules():
        if isinstance(module, nn.Dropout | nn.Dropout2d):
            module.eval()
    return model


def executors(
    name: str, factory: Callable[[Sequence[Tensor]], BlockAdam], ways: Sequence[str]
) -> list[Executor]:
    return [bll.executor(calm(name), factory, local_step=way) for way in ways]


def state(run: Executor) -> list[Tensor]:
    """Parameters, buffers and the optimiser's state."""
    found = [x for block in run.blocks for x in (*block.parameters(), *block.buffers())]  # type: ignore[attr-defined]
    for optimizer in run.optimizers:
        found += [x for own in optimizer.state.values() for x in own.values()]  # type: ignore[attr-defined]
    return [x.detach() for x in found]


def assert_near(runs: Sequence[Executor]) -> None:
    for left, right in zip(*map(state, runs), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)


def steps(runs: Sequence[Executor], feed: Sequence[Batch]) -> None:
    for x, y in feed:
        left, right = (run.step(x, y) for run in runs)
        torch.testing.assert_close(left.output, right.output, rtol=1e-8, atol=1e-9)
        torch.testing.assert_close(left.losses, right.losses, rtol=1e-8, atol=1e-9)
    assert_near(runs)


def in_one_call(run: Executor) -> list[bool]:
    (known,) = run.in_turn._known.values()
    return [one.whole is not None for one in known.served]


def decaying(parameters: Sequence[Tensor]) -> BlockAdam:
    # A large eps: where a gradient is nothing but rounding, the step is too.
    return BlockAdam(parameters, lr=0.01, eps=1e-3, weight_decay=0.1, decoupled_weight_decay=True)


def coupled(parameters: Sequence[Tensor]) -> BlockAdam:
    return BlockAdam(parameters, lr=0.01, eps=1e-3, weight_decay=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factory"), [("mlp", decaying), ("convolutional", coupled)])
def test_it_learns_what_autograd_learns(
    name: str, factory: Callable[[Sequence[Tensor]], BlockAdam]
) -> None:
    feed = batches(name, torch.float64, 10)
    runs = executors(name, factory, ("compiled", "autograd"))
    steps(runs, feed[:4])
    assert in_one_call(runs[0]) == [True] * 4
    assert set(runs[0].paths.values()) == {"compiled"}
    (known,) = runs[0].in_turn._known.values()
    made = [one.whole for one in known.served]
    for run in runs:
        for optimizer in run.optimizers:
            optimizer.param_groups[0]["lr"] = 0.003  # type: ignore[attr-defined]
    steps(runs, feed[4:6])
    # A step that is watched goes by parts, and is counted.
    with runs[0].watched(Recorder()) as recorder:
        steps(runs, feed[6:7])
    assert len(recorder.events()) == 16
    for run in runs:
        run.blocks[0].parameters()[0].grad = torch.full_like(run.blocks[0].parameters()[0], 0.1)
    steps(runs, feed[7:9])
    assert all(p.grad is None for p in runs[0].blocks[0].parameters())
    assert [one.whole for one in known.served] == made
    for optimizer in runs[0].optimizers:
        assert isinstance(optimizer, BlockAdam)
        assert {float(own["step"]) for own in optimizer.state.values()} == {9.0}
        # A state from elsewhere is the one that is read.
        optimizer.load_state_dict(optimizer.state_dict())
    steps(runs, feed[9:] + feed[:3])
    assert in_one_call(runs[0]) == [True] * 4


def steps_done(run: Executor) -> set[float]:
    """What the counters of the last block's optimiser say."""
    return {float(own["step"]) for own in run.optimizers[-1].state.values()}  # type: ignore[attr-defined]


@pytest.mark.slow
def test_a_fault_is_named_and_counts_no_step() -> None:
    feed = batches("mlp", torch.float64, 6)
    runs = executors("mlp", decaying, ("compiled", "autograd"))
    steps(runs, feed[:4])
    x, y = feed[4]
    raised = []
    for run in runs:
        with pytest.raises((RuntimeError, ValueError, IndexError), match="labels: exp") as caught:
            run.run([(x, y + 5)])
        raised.append(caught.value.__notes__)
    assert raised == [["in block '0', loss of micro-batch 0"]] * 2
    steps(runs, feed[4:])
    assert in_one_call(runs[0]) == [True] * 4
    # An error that no label causes: a step that was not done is not counted.
    (known,) = runs[0].in_turn._known.values()
    last = known.served[3].whole
    assert last is not None
    compiled, before = last._run, steps_done(runs[0])

    def counts_and_fails(given: list[Tensor]) -> None:
        last._groups[0].lists.counters.add_(1)
        raise KeyboardInterrupt

    last._run = counts_and_fails  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt) as caught:
        runs[0].step(*feed[4])
    assert caught.value.__notes__ == ["in block 'output', the step in one call of micro-batch 0"]
    assert steps_done(runs[0]) == before == {6.0}
    last._run = compiled
    runs[0].step(*feed[4])
    assert known.served[3].whole is last
    assert steps_done(runs[0]) == {7.0}


def sgd(parameters: Sequence[Tensor]) -> BlockSGD:
    return BlockSGD(parameters, lr=0.05)


@pytest.mark.slow
def test_where_it_cannot_be_made_the_parts_serve_and_the_path_says_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    feed = batches("mlp", torch.float64, 4)
    runs = [bll.executor(calm("mlp"), sgd, local_step=way) for way in ("compiled", "autograd")]
    steps(runs, feed)
    reason = "its optimiser is not BlockAdam with gradients of all parameters"
    assert set(runs[0].paths.values()) == {f"compiled, in parts: {reason}"}

    def forgets(parameter: Tensor, gradient: Tensor, *rest: Tensor, decay: str | None) -> None:
        adam_(parameter, gradient * 2, *rest, decay=decay)

    monkeypatch.setattr(whole, "adam_", forgets)
    runs = executors("mlp", decaying, ("compiled", "autograd"))
    steps(runs, feed)
    assert in_one_call(runs[0]) == [False] * 4
    reason = "its trace gives other means of gradients than autograd"
    assert set(runs[0].paths.values()) == {f"compiled, in parts: {reason}"}


@pytest.mark.slow
def test_small_floats_agree_within_their_rounding() -> None:
    feed = batches("mlp", torch.float32, 6)
    models = [calm("mlp", torch.float32) for _ in range(2)]
    runs = [
        bll.executor(model, adam, local_step=way)
        for model, way in zip(models, ("compiled", "traced"), strict=True)
    ]
    for x, y in feed:
        left, right = (run.step(x, y) for run in runs)
        torch.testing.assert_close(left.output, right.output, rtol=1e-3, atol=1e-3)
    assert in_one_call(runs[0]) == [True] * 4
