"""bll.executor: a wrapped model trained block by block, in turn and overlapped."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from sklearn.datasets import load_digits
from tolerance import assert_same_bits
from torch import Tensor, nn

import bll
from bll.models import build_network
from bll_kernels.optim import BlockAdam


def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return BlockAdam(parameters, lr=2e-3)


def wrapped(rule: str = "bll", dropout: float = 0.0, width: int = 32) -> nn.Module:
    torch.manual_seed(1)
    network = build_network("mlp", (1, 8, 8), 10, blocks=4, width=width)
    model = network.model
    if dropout:
        for child in list(model.children())[1:-1]:
            child.append(nn.Dropout(dropout))
    return bll.wrap(
        model, blocks=list(network.cuts), rule=rule, num_classes=10, example=torch.randn(2, 1, 8, 8)
    )


def digits() -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    return torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(y)


@pytest.mark.parametrize("rule", ["bll", "bll-kl"])
def test_same_bits_overlapped(rule: str) -> None:
    x, y = digits()
    feed = [(x[i : i + 60], y[i : i + 60]) for i in range(0, 900, 60)]
    models = [wrapped(rule, dropout=0.1) for _ in range(3)]
    runs = [
        bll.executor(models[0], adam, micro_batches=2, seed=4),
        bll.executor(models[1], adam, mode="pipelined", micro_batches=2, seed=4),
        bll.executor(models[2], adam, mode="pipelined", depth=2, micro_batches=2, slots=1, seed=4),
    ]
    results = [run.run(feed) for run in runs]
    assert all(line.stale_by == 0 for line in runs[0].certificate)
    want = models[0].state_dict()
    for model, result in zip(models[1:], results[1:], strict=True):
        for key, value in model.state_dict().items():
            assert_same_bits(value, want[key])
        for left, right in zip(result, results[0], strict=True):
            assert_same_bits(left.output, right.output)


def test_autocast_is_that_of_the_ordinary_loop() -> None:
    x, y = digits()
    models = [wrapped() for _ in range(3)]
    runs = [
        bll.executor(models[0], adam, autocast=torch.bfloat16),
        bll.executor(models[1], adam, mode="pipelined", autocast=torch.bfloat16),
    ]
    optimizer = torch.optim.Adam(bll.param_groups(models[2], lr=2e-3), fused=True)
    for i in range(0, 240, 40):
        batch, labels = x[i : i + 40], y[i : i + 40]
        results = [run.step(batch, labels) for run in runs]
        with torch.autocast("cpu", torch.bfloat16):
            out = models[2](batch, y=labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        assert results[0].output.dtype == out.logits.dtype == torch.bfloat16
        for name, loss in results[0].losses.items():
            torch.testing.assert_close(loss, out.block_losses[name].detach(), rtol=2e-2, atol=1e-2)
    assert set(runs[0].paths.values()) == {"traced"}
    want = models[0].state_dict()
    for key, value in models[1].state_dict().items():
        assert_same_bits(value, want[key])
    with pytest.raises(
        ValueError, match=r"autocast: expected torch\.bfloat16, torch\.float16 or None"
    ):
        bll.executor(models[0], adam, autocast=torch.float32)


@pytest.mark.parametrize("rule", ["bll", "bll-kl"])
def test_steps_equal_the_ordinary_loop(rule: str) -> None:
    x, y = digits()
    model = wrapped(rule)
    twin = copy.deepcopy(model)
    run = bll.executor(model, adam)
    optimizer = torch.optim.Adam(bll.param_groups(twin, lr=2e-3), fused=True)
    for i in range(0, 240, 40):
        batch, labels = x[i : i + 40], y[i : i + 40]
        result = run.step(batch, labels)
        out = twin(batch, y=labels)
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
        assert list(result.losses) == list(out.block_losses)
        for name, loss in result.losses.items():
            torch.testing.assert_close(loss, out.block_losses[name].detach(), rtol=1e-4, atol=1e-5)
    for left, right in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-2, atol=1e-4)


def test_digits_are_learnt_overlapped() -> None:
    x, y = digits()
    model = wrapped(width=64)
    run = bll.executor(model, adam, mode="pipelined")
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        order = torch.randperm(1440, generator=generator).split(48)
        run.run((x[:1440][index], y[:1440][index]) for index in order)
    model.eval()
    with torch.no_grad():
        accuracy = (model(x[1440:]).argmax(1) == y[1440:]).float().mean().item()
    assert accuracy > 0.92


def test_nested_containers() -> None:
    nested = nn.Sequential(nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5)), nn.Linear(5, 2))
    example = torch.randn(3, 4)
    model = bll.wrap(nested, blocks=["0.0"], num_classes=2, example=example)
    run = bll.executor(model, adam)
    assert [len(block.parameters()) for block in run.blocks] == [4, 4]
    labels = torch.tensor([0, 1, 1])
    want = {name: loss.detach() for name, loss in model(example, y=labels).block_losses.items()}
    for name, loss in run.step(example, labels).losses.items():
        torch.testing.assert_close(loss, want[name])


def test_unsuitable_models() -> None:
    with pytest.raises(ValueError, match="model: expected a wrapped model, got a plain Sequential"):
        bll.executor(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(ValueError, match="reads downstream"):
        bll.executor(wrapped("bp-deepsup"))
    late = bll.wrap(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), ["0"], num_classes=2)
    with pytest.raises(ValueError, match="model: its blocks are not known yet"):
        bll.executor(late)

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    example = torch.randn(3, 4)
    own = bll.wrap(Own(), blocks=["first"], num_classes=2, example=example)
    with pytest.raises(TypeError, match=r"model: expected an nn\.Sequential, .* got Own"):
        bll.executor(own)
    nested = nn.Sequential(Own(), nn.Linear(2, 2))
    inside = bll.wrap(nested, blocks=["0.first"], num_classes=2, example=example)
    with pytest.raises(TypeError, match=r"got '0.first' inside a Own"):
        bll.executor(inside)
    with pytest.raises(ValueError, match="depth: expected at most 4"):
        bll.executor(wrapped(), mode="pipelined", depth=5)
