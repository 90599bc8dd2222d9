"""Maps pooled and standardised, and the gradient back, against what PyTorch has for it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import Goal, Record
from torch import Tensor
from traffic import standardized_map_bytes

import bll_kernels as bk

GATE = 2e-6
#: Maps of the image experiments and their grids; the last is read pixel by pixel.
MAPS = [
    ((100, 16, 28, 28), 14),
    ((100, 64, 7, 7), 4),
    ((512, 64, 32, 32), 4),
    ((512, 512, 4, 4), 4),
]


def eager(x: Tensor, upstream: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """Adaptive pooling, batch normalisation without weights, and the gradient of the map."""
    leaf = x.detach().requires_grad_()
    cells = F.batch_norm(F.adaptive_avg_pool2d(leaf, grid), None, None, training=True).flatten(1)
    return cells.detach(), *torch.autograd.grad(cells, leaf, upstream)


@pytest.mark.parametrize("last", [False, True], ids=["nchw", "nhwc"])
@pytest.mark.parametrize(("shape", "grid"), MAPS, ids=str)
def test_standardised_cells(
    report: Callable[..., Record], quick: bool, shape: tuple[int, ...], grid: int, last: bool
) -> None:
    """In float32; the cells' own normalisation is the part that no other benchmark has."""
    torch.manual_seed(0)
    if quick:
        shape, grid = (4, 3, 6, 6), 2
    layout = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(shape).to(memory_format=layout)
    upstream = torch.randn(shape[0], shape[1] * grid * grid)

    def ours() -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        cells = bk.grid_pool(leaf, "mean", grid, standardize=True)
        return cells.detach(), *torch.autograd.grad(cells, leaf, upstream)

    want = eager(x.double(), upstream.double(), grid)
    errors = [
        ((got.double() - truth).norm() / truth.norm()).item()
        for got, truth in zip(ours(), want, strict=True)
    ]
    assert max(errors) <= GATE, errors

    def separately() -> tuple[Tensor, Tensor]:
        leaf = x.detach().requires_grad_()
        cells = bk.grid_pool(leaf, "mean", grid).unflatten(1, (shape[1], -1))
        cells = F.batch_norm(cells, None, None, training=True).flatten(1)
        return cells.detach(), *torch.autograd.grad(cells, leaf, upstream)

    report(
        f"standardised cells {list(shape)} to {grid} x {grid} {'nhwc' if last else 'nchw'}",
        ours,
        {"eager": lambda: eager(x, upstream, grid), "grid_pool, batch_norm": separately},
        [Goal("grid_pool, batch_norm", 1.0)],
        moved_bytes=standardized_map_bytes(x.numel(), upstream.numel(), x.element_size()),
        errors={"ours": max(errors)},
    )
