"""From what a module returns to the latents a rule reads: one tensor, one row per sample."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_leaves

import bll_kernels
from bll_kernels.functional.weights import refuse_surrounding_weight

Pool = tuple[str, int]

#: What latents are standardised over.
STANDARDIZE = ("none", "channels", "batch", "sample")

# Keys under which common model families return their main tensor, best first.
_FEATURE_KEYS = ("last_hidden_state", "logits", "out")
_LOGIT_KEYS = ("logits", "out")


@dataclass(frozen=True)
class FeatureSpec:
    """How one block's output becomes latents.

    Attributes:
        shape: Shape of the feature without its batch dimension.
        pool: Grid pooling of a [C, H, W] map, as (kind, grid); None for vectors and tokens, and
            for maps that are read whole.
        width: Number of latents D.
        dtype: Data type of the message: float64 for a float64 feature, else float32.
        channels_last: Whether a map is [H, W, C] rather than [C, H, W].
    """

    shape: tuple[int, ...]
    pool: Pool | None
    width: int
    dtype: torch.dtype
    channels_last: bool = False

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of what a rule gets of one sample: [C, H, W] of maps, [D] of vectors and tokens."""
        if len(self.shape) < 3:
            return self.shape[-1:]
        return (self.shape[2], *self.shape[:2]) if self.channels_last else self.shape


def select_feature(output: Any) -> Tensor:
    """Return the tensor of a module's output that a local loss is taken on.

    Args:
        output: A tensor, or any nesting of tuples, lists and mappings. Of a mapping
            `last_hidden_state`, `logits` or `out` counts; otherwise the first floating-point
            tensor with a batch dimension and at least one more.

    Raises:
        ValueError: There is no such tensor.
    """
    return _select(output, _FEATURE_KEYS)


def select_logits(output: Any) -> Tensor:
    """Return the logits of a model's output: the tensor itself, `.logits`, or the first tensor.

    Raises:
        ValueError: There is no floating-point tensor of two or more dimensions.
    """
    named = getattr(output, "logits", None)
    return _select(named if isinstance(named, Tensor) else output, _LOGIT_KEYS)


def _select(output: Any, keys: tuple[str, ...]) -> Tensor:
    if isinstance(output, Tensor):
        leaves = [output]
    elif isinstance(output, Mapping):
        chosen = [output[key] for key in keys if isinstance(output.get(key), Tensor)]
        leaves = chosen or tree_leaves(dict(output))
    else:
        leaves = tree_leaves(output)
    for leaf in leaves:
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 2:
            return leaf
    raise ValueError(
        "expected an output holding a floating-point tensor of shape [batch, ...] with two or "
        f"more dimensions, got {_describe(output)}"
    )


def _describe(output: Any) -> str:
    if isinstance(output, Tensor):
        return f"a tensor of shape {list(output.shape)} and dtype {output.dtype}"
    return f"{type(output).__name__}"


def feature_spec(feature: Tensor, pool: Pool, max_width: int) -> FeatureSpec:
    """Decide how features shaped like this one are read.

    A map smaller than the grid uses its own size; a grid that would give more than `max_width`
    latents is made coarser. A square map whose channels stand last is known by its equal first two
    sizes; where all three are equal, or no two are, channels are taken to stand first.

    Args:
        feature: [B, D], [B, T, D], [B, C, H, W] or [B, H, W, C]; a meta tensor will do.
        pool: Wanted pooling of maps, (kind, grid).
        max_width: Upper limit on C * grid * grid (grid 1 is always allowed).

    Raises:
        ValueError: Any other number of dimensions, or an empty one.
    """
    shape = tuple(feature.shape[1:])
    if feature.dim() not in (2, 3, 4) or 0 in shape:
        raise ValueError(
            "expected a feature of shape [B, D], [B, T, D] or [B, C, H, W] with no empty "
            f"dimension, got {list(feature.shape)}"
        )
    dtype = torch.float64 if feature.dtype == torch.float64 else torch.float32
    channels_last = feature.dim() == 4 and shape[0] == shape[1] != shape[2]
    return repooled(FeatureSpec(shape, None, shape[-1], dtype, channels_last), pool, max_width)


def flat_spec(feature: Tensor) -> FeatureSpec:
    """Decide how features are read by a rule that takes them whole: maps unpooled, flattened.

    Args:
        feature: As in `feature_spec`.

    Raises:
        ValueError: As in `feature_spec`.
    """
    spec = feature_spec(feature, ("mean", 1), 1)
    width = math.prod(spec.shape) if feature.dim() == 4 else spec.width
    return replace(spec, pool=None, width=width)


def repooled(spec: FeatureSpec, pool: Pool, max_width: int) -> FeatureSpec:
    """Return how the same features are read with another pooling; only maps are pooled."""
    if len(spec.sample_shape) < 3:
        return spec
    channels, height, width = spec.sample_shape
    grid = min(pool[1], height, width)
    while grid > 1 and channels * grid * grid > max_width:
        grid -= 1
    return replace(spec, pool=(pool[0], grid), width=channels * grid * grid)


def latents(output: Any, spec: FeatureSpec) -> Tensor:
    """Return a block's feature: [B, D], [B, T, D], or the [B, C, H, W] map `spec.pool` pools.

    Raises:
        ValueError: The output no longer has the kind of shape `spec` was made from.
    """
    feature = select_feature(output)
    if feature.dim() != len(spec.shape) + 1:
        raise ValueError(
            f"expected a feature of shape [B, {', '.join(map(str, spec.shape))}] as in the "
            f"example, got {list(feature.shape)}"
        )
    return feature.permute(0, 3, 1, 2) if spec.channels_last else feature


def standardized(feature: Tensor, pool: Pool | None, over: str) -> tuple[Tensor, Pool | None]:
    """Bring a feature's latents to mean 0 and variance 1.

    Gradients go through mean and variance, so that no loss behind can pull at either. 1e-5 is added
    to the variance.

    Args:
        feature: As `latents` returns it.
        pool: Pooling of a map, done before.
        over: "channels": each channel of a map over its cells in the whole batch, as batch
            normalisation does, without weights or running statistics; vectors and tokens stay as
            they are. "batch": the same, and each latent of vectors and tokens over all rows.
            "sample": each row over its own latents, as layer normalisation does. "none": nothing.

    Returns:
        The latents [B, D] or [B, T, D], and None; feature and pool as they are where nothing is
        standardised.

    Raises:
        ValueError: There is one value to standardise over; or rows are to be left out, which the
            others would still see.
    """
    if over == "none" or (over == "channels" and pool is None):
        return feature, pool
    if over == "sample":
        rows = feature if pool is None else _cells(feature, pool)
        return F.layer_norm(rows, rows.shape[-1:]), None
    refuse_surrounding_weight(f"standardize={over!r}")
    values = feature[..., 0].numel() if pool is None else len(feature) * pool[1] ** 2
    if values == 1:
        one = "latent" if pool is None else "channel"
        raise ValueError(
            f"standardize: {over!r} needs two values or more of each {one}, got one; 'sample' and "
            "'none' take any batch"
        )
    if pool is not None:
        return bll_kernels.grid_pool(feature, *pool, standardize=True), None
    rows = bll_kernels.standardize_channels(feature.flatten(0, -2))
    return rows.reshape(feature.shape), None


def _cells(feature: Tensor, pool: Pool) -> Tensor:
    kind, grid = pool
    if kind != "std" and feature.shape[2] == feature.shape[3] == grid:
        return feature.flatten(1)  # every cell is one pixel
    return bll_kernels.grid_pool(feature, kind, grid)
