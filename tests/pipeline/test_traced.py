"""Local steps without autograd: the same learning, checked before it takes over."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor, nn
from wrapped_nets import NETS, adam, batches, wrapped

import bll
import bll_kernels as bk
from bll_kernels.optim import BlockSGD
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.traced import TracedStep


@pytest.mark.parametrize("rule", ["bll", "bll-kl"])
@pytest.mark.parametrize("name", list(NETS))
def test_it_learns_what_autograd_learns(name: str, rule: str) -> None:
    feed = batches(name, torch.float64)
    models = [wrapped(name, torch.float64, rule) for _ in range(2)]
    runs = [
        bll.executor(model, adam, micro_batches=2, local_step=way)
        for model, way in zip(models, ("autograd", "traced"), strict=True)
    ]
    results = [[run.step(x, y) for x, y in feed] for run in runs]
    assert set(runs[0].paths.values()) == {"autograd"}
    assert set(runs[1].paths.values()) == {"traced"}
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left.output, right.output, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(left.losses, right.losses, rtol=1e-9, atol=1e-9)
    want = models[0].state_dict()
    for key, value in models[1].state_dict().items():
        torch.testing.assert_close(value, want[key], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", list(NETS))
def test_overlapped_it_has_the_bits_of_taking_turns(name: str) -> None:
    feed = batches(name, torch.float32, 6)
    models = [wrapped(name, torch.float32) for _ in range(2)]
    runs = [
        bll.executor(model, adam, mode=mode, micro_batches=2, local_step="traced")
        for model, mode in zip(models, ("sequential", "pipelined"), strict=True)
    ]
    for run in runs:
        run.run(feed)
    want = models[0].state_dict()
    for key, value in models[1].state_dict().items():
        assert_same_bits(value, want[key])


def test_the_first_step_is_the_program_s_own() -> None:
    """A run that starts anew from a state goes on with the bits of one that did not stop."""
    feed = batches("convolutional", torch.float32, 5)
    model = wrapped("convolutional", torch.float32)
    run = bll.executor(model, lambda p: BlockSGD(p, lr=0.1), local_step="traced")
    for x, y in feed[:3]:
        run.step(x, y)
    again = bll.executor(copy.deepcopy(model), lambda p: BlockSGD(p, lr=0.1), local_step="traced")
    again.batches_done = run.batches_done
    for x, y in feed[3:]:
        left, right = run.step(x, y), again.step(x, y)
        assert_same_bits(left.output, right.output)


def programs(run: Executor) -> list[TracedStep]:
    found = [step for step in run.steps if isinstance(step, TracedStep)]
    assert len(found) == len(run.steps)
    return found


def test_calls_of_a_block_are_few() -> None:
    """Linear, batch norm, ReLU and the loss: nothing is left of what tracing adds."""
    run = bll.executor(wrapped("mlp", torch.float32), adam)
    run.step(*batches("mlp", torch.float32, 1)[0])
    (program,) = programs(run)[0].programs.values()
    assert program is not None
    assert program.calls == 10, program.source
    assert "detach" not in program.source
    assert program.source.count("class_loss_value_and_grad.default(") == 1
    # The weight's transpose is made once; the gradient of the first layer's input never.
    assert program.source.count("torch.t(") == 1 and program.source.count("torch.mm(") == 1


class Plain:
    """A block of a module with cross-entropy on its first five outputs."""

    def __init__(self, body: nn.Module, forward: Callable[[Tensor], Tensor] | None = None) -> None:
        self.name, self.reads = "only", frozenset({"output", "label"})
        self.body = body
        self.run = body if forward is None else forward

    def parameters(self) -> Sequence[Tensor]:
        return [p for p in self.body.parameters() if p.requires_grad]

    def buffers(self) -> Sequence[Tensor]:
        return list(self.body.buffers())

    def trace_key(self) -> Hashable:
        state = [*self.body.parameters(), *self.body.buffers()]
        return (self.body.training, *(x.data_ptr() for x in state))

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        leaf = output.detach().requires_grad_()
        value = nn.functional.cross_entropy(leaf[:, :5], labels)
        return value, torch.autograd.grad(value, leaf)[0]


def data_dependent(x: Tensor) -> Tensor:
    return x if float(x.detach().sum()) > 0 else -x


class Replacing(nn.Module):
    """Keeps a running mean by making a new tensor of it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return self.linear(x - self.mean)


class Coin(nn.Module):
    """Decides by a number that torch does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.tosses = random.Random(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.tosses.random()


def untraceable() -> list[tuple[Plain, str]]:
    torch.manual_seed(0)
    linear, replacing, coin = nn.Linear(6, 6), Replacing(), Coin()
    return [
        (Plain(linear, lambda x: data_dependent(linear(x))), "data-dependent"),
        (Plain(replacing), "replaces a buffer"),
        (Plain(coin), "gives other output than autograd"),
    ]


@pytest.mark.parametrize("case", range(3))
def test_what_cannot_be_traced_is_served_by_autograd_with_the_reason(case: int) -> None:
    block, reason = untraceable()[case]
    twin = copy.deepcopy(block) if case else untraceable()[case][0]
    run = Executor([block], adam, micro_batches=2)
    reference = Executor([twin], adam, micro_batches=2, local_step="autograd")
    generator = torch.Generator().manual_seed(3)
    for _ in range(3):
        x, y = torch.randn(4, 6, generator=generator), torch.randint(5, (4,), generator=generator)
        result = run.step(x, y)
        assert run.paths["only"].startswith("autograd: ") and reason in run.paths["only"]
        if case < 2:
            assert_same_bits(result.output, reference.step(x, y).output)
        assert all(p.grad is None for p in block.parameters())
        assert not any(type(b).__name__ == "FakeTensor" for b in block.buffers())
    if case < 2:
        for left, right in zip(block.parameters(), twin.parameters(), strict=True):
            assert_same_bits(left, right)


def test_asked_for_by_name_it_does_not_fall_back() -> None:
    block, _ = untraceable()[1]
    before = [p.detach().clone() for p in block.parameters()]
    run = Executor([block], adam, local_step="traced")
    with pytest.raises(RuntimeError, match="the step of 'only' cannot be traced: its forward repl"):
        run.step(torch.randn(4, 6), torch.randint(5, (4,)))
    assert all(p.grad is None for p in block.parameters())
    for left, right in zip(block.parameters(), before, strict=True):
        assert_same_bits(left, right)
    del Plain.trace_key
    try:
        with pytest.raises(TypeError, match="expected `trace_key` and `buffers` of 'only'"):
            Executor([block], adam, local_step="traced")
        assert Executor([block], adam).paths == {"only": "autograd"}
    finally:
        Plain.trace_key = _trace_key
    with pytest.raises(ValueError, match="local_step: expected one of auto, autograd, traced"):
        Executor([block], adam, local_step="jit")


_trace_key = Plain.trace_key


class Twice(nn.Module):
    """Gradients that share memory, are views, or have another layout than their parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Parameter(torch.zeros(4, 6)), nn.Parameter(torch.zeros(4, 6))
        self.scale = nn.Parameter(torch.ones(1))
        self.turned = nn.Parameter(torch.randn(6, 6).t())
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.turned + self.left + self.right) * self.scale


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_every_gradient_has_memory_of_its_own_in_its_parameter_s_layout(
    micro_batches: int,
) -> None:
    torch.manual_seed(1)
    blocks = [Plain(Twice()) for _ in range(2)]
    blocks[1].body.load_state_dict(blocks[0].body.state_dict())
    seen: list[list[Tensor | None]] = []

    class Watched(BlockSGD):
        def step(self, closure: Any = None) -> Any:
            seen.append([p.grad for group in self.param_groups for p in group["params"]])
            return super().step(closure)

        def step_checked(self, gradients: Sequence[Tensor | None], index: int = 0) -> None:
            seen.append(list(gradients))
            super().step_checked(gradients, index)

    def make(parameters: Sequence[Tensor]) -> Watched:
        return Watched(parameters, lr=0.1, momentum=0.9)

    runs = [
        Executor([block], make, micro_batches=micro_batches, local_step=way)
        for block, way in zip(blocks, ("autograd", "traced"), strict=True)
    ]
    for _ in range(3):
        x, y = torch.randn(4 * micro_batches, 6), torch.randint(5, (4 * micro_batches,))
        for run in runs:
            seen.clear()
            run.step(x, y)
        held = [gradient for gradient in seen[-1] if gradient is not None]
        assert len(held) == 4 and seen[-1][-1] is None
        assert len({gradient.data_ptr() for gradient in held}) == 4
        for gradient, parameter in zip(seen[-1], blocks[1].parameters(), strict=True):
            assert gradient is None or gradient.stride() == parameter.stride()
    for left, right in zip(blocks[0].parameters(), blocks[1].parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_another_mode_shape_dtype_or_memory_is_traced_anew() -> None:
    model = wrapped("mlp", torch.float32)
    run = bll.executor(model, lambda p: BlockSGD(p, lr=0.01))
    twin = copy.deepcopy(model)
    reference = bll.executor(twin, lambda p: BlockSGD(p, lr=0.01), local_step="autograd")
    x, y = batches("mlp", torch.float32, 1)[0]

    def step(expected: int, *batch: Tensor) -> None:
        left, right = run.step(*batch), reference.step(*batch)
        torch.testing.assert_close(left.output, right.output, rtol=1e-4, atol=1e-5)
        assert len(programs(run)[0].programs) == expected
        assert set(run.paths.values()) == {"traced"}

    step(1, x, y)
    step(1, x.clone(), y)
    step(2, x[:4], y[:4])
    step(3, x.t().contiguous().t(), y)
    for net in (model, twin):
        net.eval()
    step(4, x, y)
    for net in (model, twin):
        net.train()
        # In place: the program reads the very tensors.
        net.load_state_dict({key: value / 2 for key, value in net.state_dict().items()})
    step(4, x, y)
    for net in (model, twin):
        for parameter in net.parameters():
            parameter.data = parameter.data.clone()
    step(5, x, y)
    with bk.use_backend("reference"):
        step(6, x, y)


def test_a_frozen_parameter_stays() -> None:
    model = wrapped("mlp", torch.float32)
    frozen = model.get_parameter("0.0.weight")
    frozen.requires_grad_(False)
    before = frozen.clone()
    run = bll.executor(model, adam, local_step="traced")
    for x, y in batches("mlp", torch.float32):
        run.step(x, y)
    assert_same_bits(frozen, before)
    assert frozen.grad is None


def test_a_block_that_writes_to_its_input_leaves_the_block_before_it_alone() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 5))
    model = bll.wrap(net, blocks=["0"], num_classes=5, example=torch.randn(2, 6))
    twin = copy.deepcopy(model)
    runs = [
        bll.executor(model, adam, local_step="traced"),
        bll.executor(twin, adam, mode="pipelined", local_step="autograd"),
    ]
    for _ in range(3):
        x, y = torch.randn(8, 6), torch.randint(5, (8,))
        for run in runs:
            run.step(x, y)
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_labels_out_of_range_are_still_refused() -> None:
    run = bll.executor(wrapped("mlp", torch.float32), adam, local_step="traced")
    x, y = batches("mlp", torch.float32, 1)[0]
    run.step(x, y)
    before = {key: p.clone() for key, p in enumerate(run.blocks[0].parameters())}
    with pytest.raises((RuntimeError, ValueError, IndexError), match="labels: expected values in"):
        run.step(x, y + 5)
    for key, parameter in enumerate(run.blocks[0].parameters()):
        assert_same_bits(parameter, before[key])
    run.step(x, y)
