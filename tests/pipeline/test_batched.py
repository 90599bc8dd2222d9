"""Equal blocks as one batched step: within rounding of one block at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from local_blocks import adam, network
from torch import Tensor, nn
from wrapped_nets import Attention

import bll
from bll_kernels.optim import BlockAdam, BlockSGD
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.executor import Executor

WIDTH, CLASSES, LAYERS = 6, 4, 3
Feed = list[tuple[Tensor, Tensor]]


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


def plain() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.GELU())


def attention() -> nn.Module:
    layer = Attention()
    for module in layer.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    layer.layer.self_attn.dropout = 0.0
    return layer


def wrapped(
    layer: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, layers: int = LAYERS,
    **options: Any,
) -> nn.Module:  # fmt: skip
    """Some equal layers and a head."""
    torch.manual_seed(3)
    sizes = (3, 16) if layer is attention else (WIDTH,)
    head = nn.Sequential(nn.Flatten(), nn.Linear(48 if layer is attention else WIDTH, CLASSES))
    net = nn.Sequential(*[layer() for _ in range(layers)], head).to(dtype)
    return bll.wrap(
        net, blocks=[str(index) for index in range(layers)], num_classes=CLASSES,
        example=torch.randn(2, *sizes, dtype=dtype), **options,
    )  # fmt: skip


def feed(
    count: int,
    *,
    size: int = 6,
    sizes: Sequence[int] = (WIDTH,),
    dtype: torch.dtype = torch.float64,
) -> Feed:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(size, *sizes, dtype=torch.float64, generator=generator).to(dtype),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def left_behind(run: Executor, model: nn.Module, batches: Feed, *, at_once: bool) -> list[Tensor]:
    """All that training leaves behind."""
    results = run.run(batches) if at_once else [run.step(x, y) for x, y in batches]
    found = [*model.state_dict().values()]
    for optimizer in run.optimizers:
        states = getattr(optimizer, "state", {})
        for state in states.values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    for result in results:
        found += [result.output, *result.losses.values()]
    return [value.detach().clone() for value in found]


def assert_near(left: Sequence[Tensor], right: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


def sgd(parameters: Sequence[Tensor]) -> BlockSGD:
    # Its steps are proportional to the gradients, so rounding stays rounding.
    return BlockSGD(parameters, lr=0.05, momentum=0.9)


def both(
    layer: Callable[[], nn.Module], batches: Feed, factory: Any = sgd, *, at_once: bool = True,
    micro_batches: int = 1, dtype: torch.dtype = torch.float64, wrapping: Any = None, **how: Any,
) -> tuple[list[Tensor], list[Tensor]]:  # fmt: skip
    """What the batched and the sequential executor leave behind."""
    found = []
    for options in ({"mode": "pipelined", "batched_blocks": True, **how}, {}):
        model = wrapped(layer, dtype, **(wrapping or {}))
        run = bll.executor(model, factory, micro_batches=micro_batches, **options)
        found.append(left_behind(run, model, batches, at_once=at_once))
    return found[0], found[1]


@pytest.mark.parametrize(
    ("micro_batches", "depth", "slots", "at_once"),
    [(1, None, 2, True), (3, None, 2, False), (2, 3, 2, True), (3, 4, 1, True), (6, 2, 3, False)],
)
def test_batched_steps_are_those_of_sequential(
    micro_batches: int, depth: int | None, slots: int, at_once: bool
) -> None:
    batches = feed(6, size=18)
    how = {"micro_batches": micro_batches, "depth": depth, "slots": slots, "at_once": at_once}
    assert_near(*both(normed, batches, **how))


def test_float32_against_float64() -> None:
    batches = feed(8, dtype=torch.float32)
    ours, _ = both(normed, batches, dtype=torch.float32)
    _, truth = both(normed, [(x.double(), y) for x, y in batches])
    assert_near(ours, truth, 2e-4)
    assert any(x.dtype == torch.float32 for x in ours)


@pytest.mark.parametrize("layer", [plain, attention])
def test_other_layers(layer: Callable[[], nn.Module]) -> None:
    sizes = (3, 16) if layer is attention else (WIDTH,)
    assert_near(*both(layer, feed(6, sizes=sizes)))


@pytest.mark.parametrize(
    "options",
    [
        {"rule": "bll", "family": "bernoulli"},
        {"rule": "bll", "family": "gaussian-precision"},
        {"rule": "bll-kl", "family": "bernoulli"},
        {"rule": "bll-proto"},
        {"rule": "pred-sim"},
        {"rule": "bll", "feedback": "fixed"},
    ],
    ids=str,
)
def test_other_rules(options: dict[str, str]) -> None:
    assert_near(*both(plain, feed(6), wrapping=options))


@pytest.mark.parametrize(
    "factory",
    [
        lambda p: BlockAdam(p, lr=1e-3, eps=1e-2, weight_decay=0.1),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.5),
        lambda p: BlockSGD([{"params": p[:1], "lr": 0.1}, {"params": p[1:]}], lr=0.02),
    ],
    ids=["adam", "torch", "groups"],
)
def test_other_optimisers(factory: Any) -> None:
    assert_near(*both(plain, feed(6), factory), 1e-7)


def test_options_that_change_and_blocks_stepped_alone() -> None:
    batches = feed(9)

    def train(**how: Any) -> list[Tensor]:
        model = wrapped(plain)
        run = bll.executor(model, sgd, **how)
        found = left_behind(run, model, batches[:3], at_once=True)
        # One block of another rate; one stepped by hand; one with the state it had.
        run.optimizers[1].param_groups[0]["lr"] = 0.01
        for parameter in run.blocks[2].parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        run.optimizers[2].step()
        run.optimizers[2].zero_grad()
        run.optimizers[0].load_state_dict(copy.deepcopy(run.optimizers[0].state_dict()))
        found += left_behind(run, model, batches[3:6], at_once=True)
        run.optimizers[1].param_groups[0]["lr"] = 0.05
        return found + left_behind(run, model, batches[6:], at_once=True)

    assert_near(train(mode="pipelined", batched_blocks=True), train())


def test_equal_layers_of_one_width_but_other_modules_are_told_apart() -> None:
    torch.manual_seed(0)
    layers = [
        plain(),
        plain(),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH), nn.ReLU()),
    ]
    layers += [plain(), plain(), plain(), nn.Linear(WIDTH, CLASSES)]
    net = nn.Sequential(*layers)
    model = bll.wrap(net, blocks=[str(i) for i in range(6)], num_classes=CLASSES,
                     example=torch.randn(2, WIDTH))  # fmt: skip
    run = bll.executor(model, sgd, mode="pipelined", batched_blocks=True)
    assert list(run.stacked) == [3, 4, 5]
    assert [name for name, path in run.paths.items() if path == "batched"] == ["3", "4", "5"]
    verdicts = [str(certificate).split(" (")[0] for certificate in run.certificate]
    assert verdicts[:3] == [f"{index}: exact" for index in range(3)]
    assert verdicts[3:6] == [f"{index}: exact, reordered arithmetic" for index in range(3, 6)]
    assert verdicts[6] == "output: exact"


def test_one_call_serves_all_blocks_in_flight() -> None:
    run = bll.executor(wrapped(plain), sgd, mode="pipelined", batched_blocks=True)
    assert run.stack is not None
    step, sizes = run.stack.step, []

    def counted(low: int, high: int, *rest: Any) -> Any:
        sizes.append((low, high))
        return step(low, high, *rest)

    run.stack.step = counted  # type: ignore[method-assign]
    run.run(feed(5))
    assert sizes == [(0, 1), (0, 2), (0, 3), (0, 3), (0, 3), (1, 3), (2, 3)]


def test_state_is_right_at_any_time(tmp_path: Any) -> None:
    batches = feed(6)
    model = wrapped(normed)
    run = bll.executor(model, sgd, mode="pipelined", batched_blocks=True)
    before = {name: id(parameter) for name, parameter in model.named_parameters()}
    run.run(batches)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == before
    twin = copy.deepcopy(model)
    bll.save(model, tmp_path / "model.safetensors")
    other = wrapped(normed)
    bll.load(other, tmp_path / "model.safetensors")
    x = batches[0][0]
    outputs = [net.eval()(x) for net in (model, twin, other)]
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])
    for net in (model, other):
        net.train()
    # Loaded in place, and given other memory: either way the next run goes on from there.
    reference = bll.executor(other, sgd)
    for mine, theirs in zip(run.optimizers, reference.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    run.run(feed(3))
    model.load_state_dict(other.state_dict())
    for parameter in model[1].parameters():
        parameter.data = parameter.data.clone()
    for mine, theirs in zip(run.optimizers, reference.optimizers, strict=True):
        mine.load_state_dict(copy.deepcopy(theirs.state_dict()))
    assert_near(
        left_behind(run, model, batches, at_once=True),
        left_behind(reference, other, batches, at_once=True),
    )


def test_a_fault_names_block_and_micro_batch_and_the_next_step_is_right() -> None:
    batches = feed(6, size=12)
    model, twin = wrapped(normed), wrapped(normed)
    run = bll.executor(model, sgd, mode="pipelined", batched_blocks=True, micro_batches=2)
    run.run(batches)
    assert run.stack is not None
    update, error = run.stack._update, ZeroDivisionError("planted")

    def fails(low: int, high: int) -> None:
        raise error

    run.stack._update = fails  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError) as caught:
        run.run(batches)
    assert caught.value is error
    # Micro-batch 1 ends the first batch of the first block; the second is at micro-batch 0.
    assert error.__notes__ == [
        "in block '0', update of micro-batch 1",
        "in block '1', update of micro-batch 0",
    ]
    run.stack._update = update  # type: ignore[method-assign]
    assert all(total is None for total in run.stack._sums)
    reference = bll.executor(twin, sgd, micro_batches=2)
    twin.load_state_dict(model.state_dict())
    for mine, theirs in zip(run.optimizers, reference.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    assert_near(
        left_behind(run, model, batches, at_once=True),
        left_behind(reference, twin, batches, at_once=True),
    )


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Dropout(0.2))


def test_what_cannot_be_batched_is_refused() -> None:
    run = bll.executor(wrapped(dropping), sgd, mode="pipelined", batched_blocks=True)
    before = [p.detach().clone() for p in run.blocks[0].parameters()]
    with pytest.raises(RuntimeError, match=r"draws random numbers .* instead of one for each"):
        run.run(feed(3))
    assert all(map(torch.equal, before, run.blocks[0].parameters()))

    def refused(message: str, net: nn.Module | None = None, factory: Any = sgd, **how: Any) -> None:
        options = {"mode": "pipelined", "batched_blocks": True, **how}
        with pytest.raises(ValueError, match=message):
            bll.executor(wrapped(plain) if net is None else net, factory, **options)

    refused("batched_blocks: expected mode 'pipelined', got 'sequential'", mode="sequential")
    refused("batched_blocks: expected traced steps, got", local_step="autograd")
    refused("batched_blocks: expected two or more neighbouring blocks", wrapped(plain, layers=1))
    rates = iter(range(1, 9))
    refused("two or more neighbouring", factory=lambda p: BlockSGD(p, lr=0.01 * next(rates)))
    with pytest.raises(ValueError, match=r"got none among \['b0', 'b1', 'b2'\]"):
        Executor(network(0, 3, 6), adam, mode="pipelined", batched_blocks=True)
    tied = wrapped(plain)
    tied[1][0].weight = tied[0][0].weight
    refused("one that '0' and '1' share", tied)
    turned = wrapped(plain)
    for index in range(LAYERS):
        turned[index][0].weight.data = turned[index][0].weight.data.t().contiguous().t()
    refused("expected contiguous parameters of '0'", turned)


def test_what_a_run_refuses() -> None:
    run = bll.executor(wrapped(plain), sgd, mode="pipelined", batched_blocks=True)
    with run.watched(Recorder()), pytest.raises(RuntimeError, match="cannot be watched"):
        run.run(feed(2))
    parameter = run.blocks[1].parameters()[0]
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match="expected no gradients before a step, got some in '1'"):
        run.run(feed(2))


def test_blocks_whose_code_differs_unseen_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self, factor: float) -> None:
            super().__init__()
            self.factor = factor
            self.linear = nn.Linear(WIDTH, WIDTH)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * self.factor

    factors = iter([1.5, 1.5, 2.5])
    net = wrapped(lambda: Scaled(next(factors)), layers=3)
    run = bll.executor(net, sgd, mode="pipelined", batched_blocks=True)
    with pytest.raises(RuntimeError, match=r"'0' and '2' differ: .*1\.5.*2\.5"):
        run.run(feed(3))


@pytest.mark.slow
def test_a_compiled_batched_step() -> None:
    batches = feed(6)
    assert_near(*both(plain, batches, local_step="compiled"))
