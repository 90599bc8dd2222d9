"""Generators: what is seeded for a forward, and what is given back."""

from __future__ import annotations

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor
from wrapped_nets import adam, batches, wrapped

import bll
from bll_kernels.pipeline import traced
from bll_kernels.pipeline.seeds import seeded


class Gpus:
    """Generators of GPUs, as torch.cuda gives them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, count: int = 2) -> None:
        self.generators = [torch.Generator().manual_seed(70 + gpu) for gpu in range(count)]
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "default_generators", self.generators)
        monkeypatch.setattr(cuda, "manual_seed_all", self.refuse)
        monkeypatch.setattr(cuda, "get_rng_state", lambda at: self.generators[at].get_state())
        monkeypatch.setattr(cuda, "set_rng_state", self.set_state)
        self.given: list[Tensor] = []

    def refuse(self, seed: int) -> None:
        raise AssertionError("the generators of all GPUs were seeded")

    def set_state(self, state: Tensor, at: int) -> None:
        self.given.append(state)
        self.generators[at].set_state(state)


def test_only_the_named_generators_are_seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = Gpus(monkeypatch)
    before = [torch.get_rng_state(), *(g.get_state() for g in gpus.generators)]
    with seeded(5, [1]):
        drawn = torch.rand(3)
        on_gpu = torch.rand(3, generator=gpus.generators[1])
        assert_same_bits(gpus.generators[0].get_state(), before[1])
    expected = torch.rand(3, generator=torch.Generator().manual_seed(5))
    assert_same_bits(drawn, expected)
    assert_same_bits(on_gpu, expected)
    after = [torch.get_rng_state(), *(g.get_state() for g in gpus.generators)]
    for left, right in zip(after, before, strict=True):
        assert_same_bits(left, right)
    with pytest.raises(ZeroDivisionError), seeded(6):
        raise ZeroDivisionError
    assert_same_bits(torch.get_rng_state(), before[0])


def test_executors_on_the_cpu_leave_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    feed = batches("mlp", torch.float32, 2)
    run = bll.executor(wrapped("mlp", torch.float32), adam)
    Gpus(monkeypatch)
    for x, y in feed:
        run.step(x, y)
    assert run.draws == [False, True, False, False]


def test_a_trial_gives_a_gpu_its_generator_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program draws what autograd drew, and nobody sees that it did."""
    feed = batches("mlp", torch.float32, 1)
    run = bll.executor(wrapped("mlp", torch.float32), adam, local_step="traced")
    gpus = Gpus(monkeypatch)
    monkeypatch.setattr(traced, "gpus_of", lambda x: [0])
    forward, autograd = traced.Program.forward, traced.AutogradStep.forward
    drawn: dict[str, list[Tensor]] = {"autograd": [], "program": []}

    def drawing(who: str, inner):  # type: ignore[no-untyped-def]
        def run(*given):  # type: ignore[no-untyped-def]
            drawn[who].append(torch.rand(2, generator=gpus.generators[0]))
            return inner(*given)

        return run

    monkeypatch.setattr(traced.Program, "forward", drawing("program", forward))
    monkeypatch.setattr(traced.AutogradStep, "forward", drawing("autograd", autograd))
    run.step(*feed[0])
    assert len(drawn["autograd"]) == 4
    for left, right in zip(drawn["autograd"], drawn["program"], strict=True):
        assert_same_bits(left, right)
    # Four draws by autograd are all that the generator knows of.
    twin = torch.Generator().manual_seed(70)
    for _ in range(4):
        torch.rand(2, generator=twin)
    assert_same_bits(gpus.generators[0].get_state(), twin.get_state())
