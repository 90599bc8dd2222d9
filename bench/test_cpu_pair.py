"""Bernoulli ``posterior_kl`` with its gradients against autograd and compiled forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import Goal, Record
from peers import Values, differentiated, formula, pair_peers
from traffic import pair_bytes

import bll_kernels as bk

SHAPES = [(256, 4096), (4096, 4096), (64, 256, 32, 32)]
GOALS = [
    Goal("eager formula", 6.0),
    Goal("torch.distributions", 20.0),
    Goal("compiled formula", 2.0),
    Goal("compiled one graph", 2.0),
]
GATE = {torch.float32: 3e-7, torch.bfloat16: 2e-3}
CHECKED_ROWS = 64


def gradient_error(gradient: torch.Tensor, a: torch.Tensor, b: torch.Tensor, full: bool) -> float:
    """Relative L2 error of da on the first rows, against float64."""
    rows = a.numel() // a.shape[-1]
    head = [x.reshape(rows, -1)[:CHECKED_ROWS].double() for x in (a, b)]
    want = differentiated(formula, *head, full)()[1] * min(CHECKED_ROWS, rows) / rows
    got = gradient.reshape(rows, -1)[:CHECKED_ROWS].double()
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("full", [False, True], ids=["stopped-da", "full-da-db"])
def test_bernoulli_kl(
    report: Callable[..., Record],
    quick: bool,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    full: bool,
) -> None:
    """Value and gradients in one call, with every peer of the goal list."""
    shape = tuple(min(n, 8) for n in shape) if quick else shape
    torch.manual_seed(0)
    a, b = (3 * torch.randn(shape)).to(dtype), torch.randn(shape).to(dtype)
    wrt = ("a", "b") if full else ("a",)

    def ours() -> Values:
        value, grads = bk.posterior_kl_value_and_grad(
            a, b, "bernoulli", stop_posterior=not full, wrt=wrt
        )
        return (value, *grads)

    peers = pair_peers(a, b, full, compiled=not quick)
    calls = {"ours": ours, **peers}
    errors = {name: gradient_error(call()[1], a, b, full) for name, call in calls.items()}
    # A handful of rounded numbers scatters around the error that many have on average.
    assert errors["ours"] <= GATE[dtype] * (3 if quick else 1), errors
    report(
        f"posterior_kl bernoulli {'full da db' if full else 'stopped da'} "
        f"{list(shape)} {str(dtype).removeprefix('torch.')}",
        ours,
        peers,
        GOALS,
        moved_bytes=pair_bytes(a.numel(), a.element_size(), grad_b=full),
        errors=errors,
    )


@pytest.mark.parametrize("scale", [0.05, 0.005])
def test_weak_messages(report: Callable[..., Record], quick: bool, scale: float) -> None:
    """The speed where the accuracy matters most: small messages take the series."""
    shape = (8, 8) if quick else (256, 4096)
    torch.manual_seed(0)
    a, b = 3 * torch.randn(shape), scale * torch.randn(shape)

    def ours() -> Values:
        value, grads = bk.posterior_kl_value_and_grad(a, b, "bernoulli")
        return (value, *grads)

    peers = pair_peers(a, b, False, compiled=not quick)
    errors = {
        name: gradient_error(call()[1], a, b, False)
        for name, call in {"ours": ours, **peers}.items()
    }
    assert errors["ours"] <= GATE[torch.float32], errors
    report(
        f"posterior_kl bernoulli stopped da {list(shape)} float32, message {scale}",
        ours,
        peers,
        GOALS,
        moved_bytes=pair_bytes(a.numel(), a.element_size(), grad_b=False),
        errors=errors,
    )
