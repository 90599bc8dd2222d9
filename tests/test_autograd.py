"""Backward passes: upstream gradients, repeats, second derivatives, gradcheck, autocast."""

from __future__ import annotations

from collections.abc import Callable

import oracle
import pytest
import torch
from cases import make_pair, package_family, pair_functions, pair_truth
from class_cases import make_class
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import bll_kernels as bk

pytestmark = pytest.mark.usefixtures("poisoned")

every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)

UPSTREAM: dict[str, Callable[[Tensor], Tensor]] = {
    "one": torch.ones_like,
    "scalar": lambda value: torch.full_like(value, 3.5),
    "zero": torch.zeros_like,
    "negative": lambda value: torch.full_like(value, -0.25),
    "different": lambda value: torch.linspace(-2, 2, max(value.numel(), 1)).reshape(value.shape),
}


@every_family
@every_loss
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_upstream_gradients(backend: str, family: str, loss: str, reduction: str) -> None:
    case = make_pair(family, loss, batch=(2, 3), reduction=reduction)
    function, _, options = pair_functions(loss)
    for make in UPSTREAM.values():
        a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
        value = function(a, b, package_family(case.family), **options, **case.options())
        up = make(value.detach())
        truth = pair_truth(case, up)
        got = torch.autograd.grad(value, (a, b), up, materialize_grads=True)
        for mine, want, scale in zip(got, truth.grads, truth.grad_scales, strict=True):
            assert_close(mine, want, scale=scale, noise=truth.noise)


@pytest.mark.parametrize("family", [*oracle.FAMILIES, None], ids=str)
@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_upstream_gradients_of_class_losses(
    backend: str, family: str | None, reduction: str
) -> None:
    case = make_class(family, batch=(2, 3), reduction=reduction, bias=torch.randn(4))
    for make in UPSTREAM.values():
        leaves = [x.clone().requires_grad_() for x in case.operands()]
        truth = [x.double().requires_grad_() for x in case.operands()]
        value, want = case.call(False, leaves), case.oracle(truth)
        up = make(value.detach())
        got = torch.autograd.grad(value, leaves, up)
        wanted = torch.autograd.grad(want, truth, up.double())
        for mine, theirs in zip(got, wanted, strict=True):
            assert_close(mine, theirs, scale=2 * (up.abs().max() + theirs.abs().max()))


def losses(backend: str) -> list[tuple[str, Callable[[list[Tensor]], Tensor], list[Tensor]]]:
    """Every differentiable public function on float64 inputs of moderate size."""
    found = []
    for family in oracle.FAMILIES:
        for loss in oracle.LOSSES:
            case = make_pair(family, loss, batch=(3,), width=4, dtype=torch.float64)
            function, _, options = pair_functions(loss)
            member = package_family(case.family)

            def call(x: list[Tensor], f=function, m=member, o=options) -> Tensor:
                return f(x[0], x[1], m, **o)

            found.append((f"{family} {loss}", call, [case.a, case.b]))
    for family in (*oracle.FAMILIES, None):
        bias = torch.randn(4, dtype=torch.float64)
        case = make_class(family, batch=(3,), width=4, dtype=torch.float64, bias=bias)

        def call_class(x: list[Tensor], c=case) -> Tensor:
            return c.call(False, x)

        found.append((f"{family} class", call_class, case.operands()))
    for kind in ("mean", "max", "std"):
        x = torch.randn(2, 3, 5, 5, dtype=torch.float64)

        def pool(x: list[Tensor], k=kind) -> Tensor:
            return bk.grid_pool(x[0], k, 2)

        found.append((f"pool {kind}", pool, [x]))
    return found


def test_gradcheck(backend: str) -> None:
    """Finite differences, wherever the gradient is the derivative of the value."""
    for name, call, inputs in losses(backend):
        if any(name.endswith(f" {loss}") for loss in oracle.STOPPED):
            continue
        leaves = [x.clone().requires_grad_() for x in inputs]
        assert torch.autograd.gradcheck(lambda *x, f=call: f(list(x)), leaves), name


@every_family
def test_stopped_gradients_are_those_of_a_detached_posterior(backend: str, family: str) -> None:
    """Against float64 autograd of the log-partition with rho detached; b gets none at all."""
    for loss in oracle.STOPPED:
        case = make_pair(family, loss, dtype=torch.float64)
        function, _, options = pair_functions(loss)
        a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
        function(a, b, package_family(case.family), **options).backward()
        want = pair_truth(case)
        torch.testing.assert_close(a.grad, want.grads[0], rtol=1e-9, atol=1e-11)
        assert b.grad is None or (b.grad == 0).all()
        full = pair_truth(case.with_options(loss=f"{loss}_full"))
        assert not torch.allclose(a.grad, full.grads[0])


def test_second_derivatives_raise(backend: str) -> None:
    for name, call, inputs in losses(backend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        first = torch.autograd.grad(call(leaves).sum(), leaves[0], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="differentiable"):
            first.sum().backward()
        assert name


def test_two_backwards_give_the_same(backend: str) -> None:
    for name, call, inputs in losses(backend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = call(leaves).sum()
        first = torch.autograd.grad(value, leaves[0], retain_graph=True)[0]
        second = torch.autograd.grad(value, leaves[0])[0]
        assert_same_bits(second, first)
        fresh = torch.autograd.grad(call(leaves).sum(), leaves[0])[0]
        assert_same_bits(fresh, first)
        for leaf, original in zip(leaves, inputs, strict=True):
            assert_same_bits(leaf.detach(), original)
        assert name


@pytest.mark.filterwarnings("error")
def test_gradients_only_where_asked(backend: str) -> None:
    for _, call, inputs in losses(backend):
        assert not call(inputs).requires_grad
        for chosen in range(len(inputs)):
            leaves = [x.clone().requires_grad_(i == chosen) for i, x in enumerate(inputs)]
            value = call(leaves).sum()
            if value.requires_grad:
                value.backward()
            assert all(x.grad is None for i, x in enumerate(leaves) if i != chosen)


def test_an_input_changed_before_backward_is_noticed(backend: str) -> None:
    for _, call, inputs in losses(backend):
        leaves = [x.clone().requires_grad_() for x in inputs]
        a = leaves[0] * 1.0
        value = call([a, *leaves[1:]]).sum()
        with torch.no_grad():
            a.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            value.backward()


def test_gradients_accumulate_into_shared_inputs(backend: str) -> None:
    """The same tensor as alpha and as message, and one loss after another."""
    case = make_pair("bernoulli", "evidence", dtype=torch.float64)
    x = case.a.clone().requires_grad_()
    bk.evidence_loss(x, x, "bernoulli").backward()
    y = case.a.clone().requires_grad_()
    oracle.pair_loss(y, y, oracle.OracleFamily("bernoulli"), "evidence").backward()
    torch.testing.assert_close(x.grad, y.grad)
    bk.evidence_loss(x, x, "bernoulli").backward()
    torch.testing.assert_close(x.grad, 2 * y.grad)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_leaves_the_accumulation_in_float32(backend: str, dtype: torch.dtype) -> None:
    """A half-precision layer in front; the loss stays float32 and its gradient is the layer's."""
    layer = torch.nn.Linear(6, 12)
    x = torch.randn(5, 6)
    table, labels = torch.randn(4, 12), torch.randint(4, (5,))
    with torch.autocast("cpu", dtype=dtype):
        feature = layer(x)
        assert feature.dtype == dtype
        values = [
            bk.posterior_kl(feature, table, "bernoulli", labels=labels),
            bk.evidence_loss(feature, table, "gaussian", labels=labels),
            bk.class_evidence_loss(feature, table, labels, "bernoulli"),
            bk.linear_cross_entropy(feature, table, labels),
        ]
        plain = bk.linear_cross_entropy(feature.detach().float(), table, labels)
    for value in values:
        assert value.dtype == torch.float32
    torch.testing.assert_close(values[-1], plain)
    sum(values).backward()
    assert torch.isfinite(layer.weight.grad).all() and (layer.weight.grad != 0).any()


def test_twins_match_backward_bit_for_bit(backend: str) -> None:
    for family in oracle.FAMILIES:
        for loss in oracle.LOSSES:
            case = make_pair(family, loss, batch=(17,), width=40)
            function, twin, options = pair_functions(loss)
            member = package_family(case.family)
            value, (da, db) = twin(case.a, case.b, member, wrt=("a", "b"), **options)
            a, b = case.a.clone().requires_grad_(), case.b.clone().requires_grad_()
            other = function(a, b, member, **options)
            grads = torch.autograd.grad(other, (a, b), materialize_grads=True)
            assert_same_bits(other.detach(), value)
            torch.testing.assert_close(grads, (da, db), rtol=1e-6, atol=1e-9)
