"""Block optimisers on the emulated CUDA kernels, against torch.optim in float64."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from emulated import counts, cuda, emulation  # noqa: F401
from tolerance import assert_same_bits
from torch import Tensor

from bll_kernels.optim import BlockAdam, BlockSGD

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

ADAM = {"lr": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.9)}
SGD = {"lr": 0.01, "weight_decay": 0.1, "momentum": 0.9}
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
PAIRS: dict[str, tuple[Make, Make]] = {
    "adam": (lambda p: BlockAdam(p, **ADAM), lambda p: torch.optim.Adam(p, **ADAM)),
    "adamw": (
        lambda p: BlockAdam(p, decoupled_weight_decay=True, **ADAM),
        lambda p: torch.optim.AdamW(p, **ADAM),
    ),
    "sgd": (lambda p: BlockSGD(p, **SGD), lambda p: torch.optim.SGD(p, **SGD)),
    "nesterov": (
        lambda p: BlockSGD(p, nesterov=True, **SGD),
        lambda p: torch.optim.SGD(p, nesterov=True, **SGD),
    ),
    "plain": (lambda p: BlockSGD(p, lr=0.1), lambda p: torch.optim.SGD(p, lr=0.1)),
}
every_pair = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
SHAPES = ((3,), (), (64, 130), (8, 3, 3, 3), (0, 4), (1,), (8195,))


def parameters(dtype: torch.dtype) -> list[Tensor]:
    """Sizes that fill no vector, several chunks, nothing; a layout and an address of their own."""
    generator = torch.Generator().manual_seed(0)
    found = [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]
    found[3] = found[3].to(memory_format=torch.channels_last)
    found.append(torch.randn(41, generator=generator).to(dtype)[1:])
    return [x.requires_grad_() for x in found]


def give(tensors: list[Tensor], twins: list[Tensor], seed: int, scale: float = 1.0) -> None:
    """The same gradients for both, the first ones scaled."""
    generator = torch.Generator().manual_seed(seed)
    for x, twin in zip(tensors, twins, strict=True):
        grad = torch.randn(x.shape, generator=generator).to(x.dtype)
        x.grad, twin.grad = torch.empty_like(x).copy_(grad * scale), grad.double()


def assert_close(tensors: list[Tensor], twins: list[Tensor]) -> None:
    for x, twin in zip(tensors, twins, strict=True):
        size = {torch.float32: 2e-6, torch.float16: 4e-3, torch.bfloat16: 3e-2}[x.dtype]
        torch.testing.assert_close(x.double(), twin, rtol=size, atol=size)


@pytest.fixture
def both(pair: tuple[Make, Make]) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    ours = parameters(torch.float32)
    yield ours, [x.detach().double().requires_grad_() for x in ours]


@every_pair
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_against_float64(pair: tuple[Make, Make], dtype: torch.dtype) -> None:
    ours = parameters(dtype)
    theirs = [x.detach().double().requires_grad_() for x in ours]
    mine, other = pair[0](ours), pair[1](theirs)
    for seed in range(4):
        give(ours, theirs, seed)
        mine.step()
        other.step()
    assert_close(ours, theirs)
    steps = [state["step"].item() for state in mine.state.values() if "step" in state]
    assert all(step == 4 for step in steps)


@every_pair
def test_launches_and_traffic(pair: tuple[Make, Make]) -> None:
    """One launch per step, two with the finite check; every element read once."""
    x = [torch.randn(100, 64).requires_grad_(), torch.randn(64).requires_grad_()]
    optimizer = pair[0](x)
    states = {"adam": 2, "adamw": 2, "plain": 0}
    reads = 2 + next((n for key, n in states.items() if PAIRS[key] is pair), 1)
    size = 4 * sum(t.numel() for t in x)
    found, scale = torch.zeros(1), torch.tensor(0.5)
    for options, launches, more in (
        ({}, 1, 0),
        ({"found_inf": found, "inverse_scale": scale}, 2, 1),
    ):
        give(x, [t.detach().double() for t in x], 0)
        counts()
        optimizer.step_block(0, **options)
        done = counts()
        assert (done["launches"], done["loaded"]) == (launches, (reads + more) * size)


@every_pair
def test_scaled_gradients_and_overflow(
    pair: tuple[Make, Make], both: tuple[list[Tensor], list[Tensor]]
) -> None:
    ours, theirs = both
    mine, other = pair[0](ours), pair[1](theirs)
    found, inverse = torch.zeros(1), torch.tensor(1 / 1024)
    options = {"inverse_scale": inverse, "found_inf": found}
    for seed in (0, 1):
        give(ours, theirs, seed, 1024)
        mine.step_block(0, **options)
        other.step()
        assert_close(ours, theirs)
    for bad in (torch.inf, -torch.inf, torch.nan):
        give(ours, theirs, 2, 1024)
        ours[6].grad[-1] = bad
        before = [x.detach().clone() for x in ours]
        found.zero_()
        mine.step_block(0, **options)
        assert found.item() == 1
        for x, old in zip(ours, before, strict=True):
            assert_same_bits(x.detach(), old)
    found.zero_()
    give(ours, theirs, 3, 1024)
    mine.step_block(0, **options)
    other.step()
    assert_close(ours, theirs)  # the skipped steps were not counted


def test_more_tensors_than_a_launch_takes() -> None:
    ours = [torch.randn(3).requires_grad_() for _ in range(130)]
    theirs = [x.detach().double().requires_grad_() for x in ours]
    mine, other = BlockAdam(ours, **ADAM), torch.optim.Adam(theirs, **ADAM)
    for seed in range(3):
        give(ours, theirs, seed)
        counts()
        mine.step()
        assert counts()["launches"] == 3
        other.step()
    assert_close(ours, theirs)


def test_learning_rates_in_memory_and_gradients_of_other_strides() -> None:
    ours, theirs = [torch.randn(6, 8).requires_grad_()], []
    theirs = [x.detach().double().requires_grad_() for x in ours]
    rate = torch.tensor(0.01)
    mine = BlockAdam(ours, lr=rate)
    other = torch.optim.Adam(theirs, lr=0.01)
    for seed in range(3):
        give(ours, theirs, seed)
        ours[0].grad = ours[0].grad.t().contiguous().t()
        mine.step()
        other.step()
        rate.mul_(0.5)
        other.param_groups[0]["lr"] *= 0.5
    assert_close(ours, theirs)


def test_states_go_on_in_torch() -> None:
    ours = parameters(torch.float32)
    mine = BlockAdam(ours, **ADAM)
    theirs = [x.detach().double().requires_grad_() for x in ours]
    other = torch.optim.Adam(theirs, **ADAM)
    for seed in range(2):
        give(ours, theirs, seed)
        mine.step()
        other.step()
    taken = [x.detach().clone().requires_grad_() for x in ours]
    torchs = torch.optim.Adam(taken, **ADAM)
    known = torchs.state_dict()["param_groups"]
    torchs.load_state_dict({"state": mine.state_dict()["state"], "param_groups": known})
    give(taken, theirs, 2)
    torchs.step()
    other.step()
    assert_close(taken, theirs)


def test_float64_stays_with_torch() -> None:
    x = torch.randn(5, dtype=torch.float64).requires_grad_()
    x.grad = torch.ones_like(x)
    counts()
    BlockAdam([x]).step()
    assert counts()["launches"] == 0


def test_same_bits_in_every_order() -> None:
    results = []
    for order in (0, 1, 5):
        with emulation(order):
            ours = parameters(torch.float32)
            optimizer = BlockAdam(ours, **ADAM)
            for seed in range(2):
                give(ours, [x.detach().double() for x in ours], seed)
                optimizer.step()
            results.append([x.detach() for x in ours])
    for got in results[1:]:
        for one, other in zip(got, results[0], strict=True):
            assert_same_bits(one, other)
