"""Pooling to a grid of the map's own size: nothing runs, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tolerance import assert_same_bits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import bll_kernels as bk
from bll_kernels.spec import accumulate_dtype

CELLS, GRID = 5 * 4 * 4, 4
Loss = Callable[..., Tensor]


class OpNames(TorchDispatchMode):
    """Names of the package's operations that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace.startswith("bll_"):
            self.names.append(func._opname)
        return func(*args, **(kwargs or {}))


def losses(dtype: torch.dtype) -> dict[str, Loss]:
    """Every public loss of a map or of its latents, as a function of these and the pooling."""
    labels, wide = torch.tensor([2, 0, 1]), accumulate_dtype(dtype)
    table = torch.randn(3, CELLS, dtype=wide)
    partner, vectors = torch.randn(3, CELLS).to(dtype), torch.randn(3, 6).to(dtype)
    tau = bk.Family("gaussian-precision", tau=2.0)
    return {
        "posterior_kl": lambda x, **pool: bk.posterior_kl(x, partner, "bernoulli", **pool),
        "evidence_loss": lambda x, **pool: bk.evidence_loss(
            x, table, "gaussian", labels=labels, **pool
        ),
        "class_evidence_loss": lambda x, **pool: bk.class_evidence_loss(
            x, table, labels, tau, **pool
        ),
        "linear_cross_entropy": lambda x, **pool: bk.linear_cross_entropy(x, table, labels, **pool),
        "gram_loss": lambda x, **pool: bk.gram_loss(x, vectors, **pool),
        "class_means": lambda x, **pool: bk.class_means(x, labels, 3, **pool)[0].square().sum(),
    }


@pytest.mark.parametrize("kind", ["mean", "max"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_loss_reads_the_map_itself(backend: str, kind: str, dtype: torch.dtype) -> None:
    for name, loss in losses(dtype).items():
        x = torch.randn(3, 5, GRID, GRID).to(dtype).requires_grad_()
        with OpNames() as called:
            value = loss(x, pool=(kind, GRID))
            (grad,) = torch.autograd.grad(value, x)
        assert called.names and not any("pool" in op for op in called.names), name
        want = loss(x.flatten(1))
        assert_same_bits(value, want)
        assert grad.dtype == dtype and grad.shape == x.shape
        assert_same_bits(grad, torch.autograd.grad(want, x)[0])


def test_value_and_gradient_without_autograd(backend: str) -> None:
    labels = torch.tensor([2, 0, 1])
    for dtype in (torch.float32, torch.bfloat16):
        x, table = torch.randn(3, 5, GRID, GRID).to(dtype), torch.randn(3, CELLS)
        arguments = (table, labels, "gaussian")
        with OpNames() as called:
            value, (grad,) = bk.class_evidence_loss_value_and_grad(
                x, *arguments, pool=("mean", GRID)
            )
            _, (cells,) = bk.class_evidence_loss_value_and_grad(
                x, *arguments, pool=("mean", GRID), compact_grad=True
            )
        assert not any("pool" in op for op in called.names)
        wanted, (flat,) = bk.class_evidence_loss_value_and_grad(x.flatten(1), *arguments)
        assert_same_bits(value, wanted)
        assert_same_bits(grad, flat.reshape(x.shape))
        assert cells.dtype == torch.float32
        assert_same_bits(cells, flat.reshape(x.shape).float())


def test_other_layouts_grids_and_kinds_are_pooled(backend: str) -> None:
    table, labels = torch.randn(3, CELLS), torch.tensor([2, 0, 1])
    whole = torch.randn(3, 5, GRID, GRID)
    channels_last = whole.to(memory_format=torch.channels_last)
    others = {
        "channels last": (channels_last, "mean"),
        "standard deviations": (whole, "std"),
        "larger maps": (torch.randn(3, 5, GRID + 2, GRID), "mean"),
    }
    for name, (x, kind) in others.items():
        with OpNames() as called:
            value = bk.class_evidence_loss(x, table, labels, "gaussian", pool=(kind, GRID))
        assert "grid_pool" in called.names, name
        want = bk.class_evidence_loss(bk.grid_pool(x, kind, GRID), table, labels, "gaussian")
        assert_same_bits(value, want)
