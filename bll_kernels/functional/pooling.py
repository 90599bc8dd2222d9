"""Pooling of a map to a grid of cells, in front of a loss or on its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bll_kernels.autograd import GridPool
from bll_kernels.backends.selection import fused_pool_backend, reads_whole, select
from bll_kernels.families import FORMULAS, Family
from bll_kernels.functional import checks
from bll_kernels.functional.standardize import standardize_rows
from bll_kernels.ops import op
from bll_kernels.spec import accumulate_dtype

PoolArgument = tuple[str, int] | None


@dataclass(frozen=True)
class Pooling:
    """A map pooled in front of a loss; `latents` is what the loss sees.

    Where the loss's own kernel pools (`fused`), `latents` has their shape and dtype and no data.
    Where every cell is one pixel (`whole`), it is a view of the map, in the map's dtype.
    """

    source: Tensor
    latents: Tensor
    kind: str
    grid: int
    backend: str
    fused: bool = False
    whole: bool = False

    @property
    def widened(self) -> bool:
        """Whether `latents` is in the accumulate dtype, whatever that of the map."""
        return not (self.fused or self.whole)

    def restore(self, grad: Tensor, compact: bool) -> Tensor:
        """Gradient of the map, or of the pooled cells [B, C, g, g] when `compact`."""
        if compact:
            batch, channels = self.source.shape[:2]
            cells = grad.reshape(batch, channels, self.grid, self.grid)
            return cells.to(accumulate_dtype(self.source.dtype))
        if self.whole:
            return grad.reshape(self.source.shape)
        full: Tensor = op(self.backend, "grid_pool_backward")(
            grad, self.source, self.kind, self.grid
        )
        return full


def pool_map(x: Tensor, kind: str, grid: int, backend: str) -> Tensor:
    """Differentiable grid pooling of a checked map."""
    if torch.is_grad_enabled() and x.requires_grad:
        pooled: Tensor = GridPool.apply(x, backend, kind, grid)
        return pooled
    pooled = op(backend, "grid_pool")(x, kind, grid)
    return pooled


def pool_in_front(
    name: str, a: Tensor, pool: PoolArgument, family: Family | None = None
) -> Pooling | None:
    """Check the `pool` argument and pool the map `a`; None without pooling."""
    checked = _check_pool(name, a, pool, family)
    if checked is None:
        return None
    kind, grid = checked
    backend = select(a.device.type, a.dtype, "grid_pool")
    if reads_whole(a, kind, grid):
        return Pooling(a, a.flatten(1), kind, grid, backend, whole=True)
    return Pooling(a, pool_map(a, kind, grid, backend), kind, grid, backend)


def _check_pool(name: str, a: Tensor, pool: PoolArgument, family: Family | None) -> PoolArgument:
    if pool is None:
        return None
    if not isinstance(pool, tuple) or len(pool) != 2:
        raise TypeError(f"pool: expected None or a pair (kind, grid), got {pool!r}")
    kind, grid = pool
    checks.check_pool_arguments(kind, grid)
    if family is not None and FORMULAS[family.name].planes > 1:
        raise ValueError(
            f"pool: expected a family with one parameter per latent, got {family.name}"
        )
    checks.check_map(name, a)
    return kind, grid


def fuse_pool(
    name: str, a: Tensor, pool: PoolArgument, family: Family, table: Tensor
) -> Pooling | None:
    """The pooling that a class loss's own kernel would do; None where none would."""
    checked = _check_pool(name, a, pool, family)
    if checked is None or table.dim() != 2:
        return None
    kind, grid = checked
    backend = fused_pool_backend(a, kind, grid, family.name, table.shape[0])
    if backend is None:
        return None
    shape = (a.shape[0], a.shape[1] * grid * grid)
    latents = a.new_empty((), dtype=accumulate_dtype(a.dtype)).expand(shape)
    return Pooling(a, latents, kind, grid, backend, fused=True)


def beside_pooled(x: Tensor, a: Tensor, widened: bool) -> Tensor:
    """A half-precision partner of pooled latents, which are in the accumulate dtype."""
    return x.to(a.dtype) if widened and x.dtype != a.dtype else x


def grid_pool(x: Tensor, kind: str, grid: int, *, standardize: bool = False) -> Tensor:
    """Pool a map to a `grid` x `grid` grid per channel; one read of the map.

    Cells are those of `torch.nn.functional.adaptive_avg_pool2d`: cell i spans
    floor(i H / g) to ceil((i + 1) H / g), so neighbours overlap when g does not divide H.

    Args:
        x: [B, C, H, W], contiguous or channels-last memory.
        kind: ``"mean"``; ``"max"`` (the first of equal maxima gets the gradient); ``"std"``
            (unbiased; 0 with zero gradient for constant and one-pixel cells).
        grid: cells per side, at least 1.
        standardize: bring every channel's cells to mean 0 and variance 1 over the batch, as
            `standardize_channels` does.

    Returns:
        [B, C * grid * grid], float32 (float64 for float64), latents ordered (C, g, g).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape or value; or one cell to a channel beside
            `standardize`.
    """
    checks.check_pool_arguments(kind, grid)
    checks.check_map("x", x)
    checks.check_flag("standardize", standardize)
    if standardize and reads_whole(x, kind, grid):
        return standardize_rows(x.flatten(1).to(accumulate_dtype(x.dtype)), x.shape[1])
    cells = pool_map(x, kind, grid, select(x.device.type, x.dtype, "grid_pool"))
    return standardize_rows(cells, x.shape[1]) if standardize else cells
