"""Autograd functions called by position only: nothing is looked up again at a call."""

from __future__ import annotations

import inspect

import pytest
import torch

import bll_kernels as bk
from bll_kernels import autograd
from bll_kernels.positional import PositionalFunction

FUNCTIONS = [autograd.PairLoss, autograd.ClassLoss, autograd.GridPool, autograd.GramLoss]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda function: function.__name__)
def test_every_function_takes_positions_only(function: type) -> None:
    assert issubclass(function, PositionalFunction)
    with pytest.raises(TypeError, match="by position, got x by name"):
        function.apply(x=torch.ones(2))


def test_calls_inspect_no_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a signature was worked out again")

    a, table = torch.randn(3, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    labels = torch.tensor([0, 4, 1])
    monkeypatch.setattr(inspect, "_signature_from_function", refuse)
    monkeypatch.setattr(inspect.Signature, "bind", refuse)
    bk.class_evidence_loss(a, table, labels, "gaussian").backward()
    bk.posterior_kl(a, table, "bernoulli", labels=labels).backward()


def test_a_tensor_that_left_its_transform_is_the_tensor() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    kept = []

    def loss(x: torch.Tensor) -> torch.Tensor:
        kept.append(x)
        return bk.posterior_kl(x, b, "bernoulli")

    torch.func.grad(loss)(a)
    x = a.clone().requires_grad_()
    other = bk.evidence_loss(x, kept[0], "bernoulli")
    assert torch.equal(other, bk.evidence_loss(x, a, "bernoulli"))
    other.backward()


def test_function_transforms_see_the_same_gradient() -> None:
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    found = torch.func.grad(lambda a: bk.posterior_kl(a, b, "bernoulli"))(a)
    x = a.clone().requires_grad_()
    bk.posterior_kl(x, b, "bernoulli").backward()
    assert torch.equal(found, x.grad)
