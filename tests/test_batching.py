"""The package's ops under vmap: as one call for each member."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from bll_kernels import batching
from bll_kernels.ops import op

MEMBERS, ROWS, CLASSES, LATENTS = 3, 5, 4, 6
batching.register()


def draw(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(MEMBERS, *shape, generator=generator, dtype=torch.float64).to(dtype)

    return {
        "a": normal(ROWS, LATENTS),
        "table": normal(CLASSES, LATENTS),
        "labels": torch.randint(CLASSES, (MEMBERS, ROWS), generator=generator),
        "bias": normal(CLASSES),
        "weight": torch.rand(MEMBERS, ROWS, generator=generator).to(dtype),
    }


def oracle(
    given: dict[str, Tensor], family: str, tau: float, normalize: bool, tilt: float, weighted: bool,
    reduction: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Value and gradients by float64 autograd of the log-partition, one member."""
    tensors = {k: v.double() if v.is_floating_point() else v for k, v in given.items()}
    a, table, bias = (tensors[k].clone().requires_grad_() for k in ("a", "table", "bias"))
    if family == "gaussian":
        scores = 0.5 * (a[:, None] + tilt * table).square().sum(-1)
        if normalize:
            scores = scores - 0.5 * (tilt * table).square().sum(-1)
    else:
        # log E of exp(-tau * tilt (z - b)^2 / 2) for z of mean a and variance 1.
        precision = tau * tilt
        scores = -0.5 * precision / (1 + precision) * (a[:, None] - table).square().sum(-1)
    picked = torch.log_softmax(scores + bias, 1).gather(1, tensors["labels"][:, None])[:, 0]
    losses = -picked * (tensors["weight"] if weighted else 1.0)
    value = losses.mean() if reduction == "batchmean" else losses.sum()
    return value, *torch.autograd.grad(value, (a, table, bias))


@pytest.mark.parametrize("reduction", ["batchmean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("family", "tau", "normalize", "tilt"),
    [("gaussian", 1.0, False, 1.0), ("gaussian", 1.0, True, 0.7), ("gaussian", 1.0, False, 0.7),
     ("gaussian-precision", 0.8, False, 1.3)],
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_linear_class_losses(
    family: str, tau: float, normalize: bool, tilt: float, weighted: bool, reduction: str,
    dtype: torch.dtype, limit: float,
) -> None:  # fmt: skip
    given = draw(dtype)
    weight = given["weight"] if weighted else None
    options = (family, 1, tau, normalize, tilt, reduction, True, True, True)

    def member(
        a: Tensor, table: Tensor, labels: Tensor, bias: Tensor, weight: Tensor | None
    ) -> Any:
        assert batching.is_linear(a, table, labels, bias, weight, *options)
        return batching.linear_class_loss(a, table, labels, bias, weight, *options)

    dims = (0, 0, 0, 0, 0 if weighted else None)
    got = vmap(member, in_dims=dims)(*(given[k] for k in ("a", "table", "labels", "bias")), weight)
    for index in range(MEMBERS):
        own = {name: tensor[index] for name, tensor in given.items()}
        want = oracle(own, family, tau, normalize, tilt, weighted, reduction)
        for mine, truth in zip(got, want, strict=True):
            assert mine.dtype == dtype
            torch.testing.assert_close(mine[index].double(), truth, rtol=limit, atol=limit)


def test_gradients_that_are_not_wanted_are_empty() -> None:
    own = {name: tensor[0] for name, tensor in draw().items()}
    found = batching.linear_class_loss(
        own["a"], own["table"], own["labels"], None, None,
        "gaussian", 1, 1.0, False, 1.0, "batchmean", False, False, False,
    )  # fmt: skip
    assert [tuple(x.shape) for x in found] == [(), (0,), (0,), (0,)]


def test_which_class_losses_are_linear() -> None:
    assert batching.is_linear(0, 0, 0, 0, 0, "gaussian", 1, 1.0, False, 1.0, "sum", True)
    assert not batching.is_linear(0, 0, 0, 0, 0, "gaussian", 1, 1.0, False, 1.0, "none", True)
    assert not batching.is_linear(0, 0, 0, 0, 0, "bernoulli", 1, 1.0, False, 1.0, "sum", True)


@pytest.mark.parametrize("backend", ["reference", "native"])
def test_other_ops_are_called_for_each_member(backend: str) -> None:
    given = draw(torch.float32)
    rest = (None, "bernoulli", LATENTS, 1.0, "kl", 1.0, "batchmean", True, True)
    pair = op(backend, "pair_loss_value_and_grad")
    calls = [
        pair(given["a"][i], given["table"][i], given["labels"][i], *rest) for i in range(MEMBERS)
    ]
    got = vmap(lambda a, b, y: pair(a, b, y, *rest))(given["a"], given["table"], given["labels"])
    for mine, truths in zip(got, zip(*calls, strict=True), strict=True):
        assert torch.equal(mine, torch.stack(truths))
    # What is not batched is the same for all.
    shared = vmap(lambda a: pair(a, given["table"][0], given["labels"][0], *rest)[0])(given["a"])
    alone = [pair(a, given["table"][0], given["labels"][0], *rest)[0] for a in given["a"]]
    assert torch.equal(shared, torch.stack(alone))
    pool = op(backend, "grid_pool")
    maps = torch.randn(MEMBERS, 2, 3, 4, 4)
    pooled = vmap(lambda x: pool(x, "mean", 2))(maps)
    assert torch.equal(pooled, torch.stack([pool(x, "mean", 2) for x in maps]))
    standard = op(backend, "standardize_channels")
    rows = torch.randn(MEMBERS, 5, 6)
    found = vmap(lambda x: standard(x, 3, 1e-5)[0])(rows)
    assert torch.equal(found, torch.stack([standard(x, 3, 1e-5)[0] for x in rows]))
