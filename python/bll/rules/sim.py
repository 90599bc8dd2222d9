"""Similarity matching: rule `sim`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

import bll_kernels
from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import Message, ShapedMessage
from bll.rules.base import Rule
from bll.rules.checks import check_choice

_KERNEL = 3
PROJECTIONS = ("trained", "fixed", "none")


@dataclass(frozen=True)
class SimRule(Rule):
    """Samples of one class shall be alike and others not: S(R(h)) against S(y).

        loss = mean_ij (S_ij - T_ij)^2,   S = cosine Gram of the projected features, centred,
        T_ij = 1 if y_i = y_j else -1 / (C - 1): the same Gram of the one-hot labels

    R is a 3x3 convolution followed by the standard deviation of every channel over the map, or a
    linear layer. Trained by this loss alone; the block's input is detached. Gradient and numerics:
    docs/method.md section 9.

    Nokland, Eidnes, "Training neural networks with local error signals", 2019 (arXiv 1901.06656),
    the "sim" loss.

    Attributes:
        projection: "trained", "fixed" (as drawn) or "none" (the feature itself).
    """

    projection: str = "trained"

    name: ClassVar[str] = "sim"
    source: ClassVar[str] = "Nokland, Eidnes 2019"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_choice("projection", self.projection, PROJECTIONS)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh projection for one block."""
        return Projection(num_classes, self.projection, seed=seed, device=device)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the similarity loss of one block, 0-dim."""
        return similarity_loss(feature, labels, message)


class Projection(ShapedMessage):
    """A map from the feature to one of the same shape: 3x3 convolution, or linear layer.

    No bias: a similarity is taken of centred vectors. Drawn as torch draws such layers, uniform in
    +-1 / sqrt(fan-in).

    Args:
        num_classes: Number of classes, which the target Gram depends on.
        kind: "trained", "fixed" (stays as drawn) or "none" (the feature itself).
        seed: Seed of the draw.
        device: Device of the weight.
    """

    weight: Tensor

    def __init__(
        self, num_classes: int, kind: str, *, seed: int, device: torch.device | str | None = None
    ) -> None:
        learned = ("weight",) if kind == "trained" else ()
        fixed = ("weight",) if kind == "fixed" else ()
        super().__init__(learned, fixed, seed=seed, device=device)
        self.num_classes = num_classes
        self.kind = kind

    def forward(self, feature: Tensor) -> Tensor:
        """Map [B, D] or [B, C, H, W] to the same shape."""
        if self.kind == "none":
            return feature
        weight = self.weight.to(feature.dtype)
        if feature.dim() == 4:
            return functional.conv2d(feature, weight, padding=_KERNEL // 2)
        return functional.linear(feature, weight)

    def shapes(self, feature: FeatureSpec) -> dict[str, tuple[int, ...]]:
        """Return [C, C, 3, 3] for maps, else [D, D]."""
        if self.kind == "none":
            return {}
        if len(feature.shape) == 3:
            channels = feature.shape[0]
            return {"weight": (channels, channels, _KERNEL, _KERNEL)}
        return {"weight": (feature.shape[-1], feature.shape[-1])}

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return a uniform draw."""
        bound = 1 / math.sqrt(math.prod(shape[1:]))
        return (2 * torch.rand(shape, generator=generator) - 1) * bound


def similarity_loss(feature: Tensor, labels: Tensor, message: Message | None) -> Tensor:
    """Similarity-matching loss of a feature [B, D] or [B, C, H, W], 0-dim."""
    if not isinstance(message, Projection):
        raise TypeError(f"message: expected a Projection, got {type(message).__name__}")
    projected = message(feature)
    # The standard deviation over one pixel is 0: such maps are vectors.
    is_map = projected.dim() == 4 and projected.shape[2:].numel() > 1
    return bll_kernels.gram_loss(
        projected if is_map else projected.flatten(1),
        labels,
        num_classes=message.num_classes,
        pool=("std", 1) if is_map else None,
    )
