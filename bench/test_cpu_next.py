"""The next block's input beside a loss: written by the loss's own pass, or by a pass of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import Goal, Record
from peers import Values, differentiated, formula
from torch import Tensor
from traffic import next_units, pair_bytes

import bll_kernels as bk

GROUP = 10
FAMILIES = {
    "bernoulli": bk.Family("bernoulli"),
    "gaussian": bk.Family("gaussian"),
    "categorical": bk.Family("categorical", group=GROUP),
}
GATE = {torch.float32: 3e-6, torch.bfloat16: 4e-3}


def posterior_mean(a: Tensor, b: Tensor, family: str) -> Tensor:
    """mu(a + b) in eager PyTorch."""
    r = a + b
    if family == "gaussian":
        return r
    if family == "bernoulli":
        return torch.sigmoid(r)
    return torch.softmax(r.unflatten(-1, (-1, GROUP)), -1).flatten(-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_next_input(
    report: Callable[..., Record], quick: bool, family: str, dtype: torch.dtype
) -> None:
    """posterior_kl with da and the mean of rho, against the same loss and an eager mean."""
    torch.manual_seed(0)
    shape = (8, 4 * GROUP) if quick else (256, 4000)
    a, b = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)

    def ours() -> Values:
        value, grads, after = bk.posterior_kl_value_and_grad(
            a, b, FAMILIES[family], next_input="rho"
        )
        return (value, *grads, after)

    def two_passes() -> Values:
        value, grads = bk.posterior_kl_value_and_grad(a, b, FAMILIES[family])
        return (value, *grads, posterior_mean(a, b, family))

    peers = {"loss, then eager mean": two_passes}
    if family == "bernoulli":
        eager = differentiated(formula, a, b, False)
        peers["eager formula and mean"] = lambda: (*eager(), posterior_mean(a, b, family))
    want = posterior_mean(a.double(), b.double(), family)
    errors = {
        name: ((call()[2].double() - want).norm() / want.norm()).item()
        for name, call in {"ours": ours, **peers}.items()
    }
    assert errors["ours"] <= GATE[dtype], errors
    itemsize = a.element_size()
    moved = pair_bytes(a.numel(), itemsize, grad_b=False)
    dtype_name = str(dtype).removeprefix("torch.")
    report(
        f"posterior_kl {family} da and next input {list(shape)} {dtype_name}",
        ours,
        peers,
        [Goal("loss, then eager mean", 1.0)],
        moved_bytes=moved + round(next_units(itemsize, itemsize) * a.numel() * itemsize),
        errors=errors,
    )
