"""Stochastic layer-wise learning: neighbours' class posteriors agree. Rule `sll`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

import bll_kernels
from bll.features import FeatureSpec, Pool, feature_spec
from bll.feedback import ClassTable, Message
from bll.rules.base import Before, Rule
from bll.rules.checks import check_not_negative, check_pool, check_positive, check_width
from bll_kernels.functional.weights import surrounding_weight


@dataclass(frozen=True)
class SllRule(Rule):
    """The label and the block before, compared with a class posterior through a random projection.

        p_k = softmax(R_k pool(h_k)),   R_k in R^{C x D} fixed, random
        loss = -log p_k(y) + agreement D(p_k, sg(p_{k-1})),   D(p, q) = -log sum_c sqrt(p_c q_c)
        dD/dlogits = (p_k - r) / 2,   r proportional to sqrt(p_k p_{k-1})

    The negative of a layer's evidence bound with the Bhattacharyya distance in place of the KL
    divergence. h_{k-1} is the block's input, which is detached; R_{k-1} is never trained, so a
    block reads nothing that another one changes. The first block has the first term alone. Both
    terms are read from one projection to the C classes, and dropout is the network's own.

    Yin, Corradi, "Stochastic layer-wise learning: scalable and efficient alternative to
    backpropagation", 2025 (arXiv 2505.05181, version 4; earlier versions, with a KL divergence and
    a feature alignment, are called SVP).

    Attributes:
        pool: Pooling of feature maps, (kind, grid).
        agreement: Weight of the distance.
        std: Standard deviation of the draw of R_k; None: 1 / sqrt(latents).
        max_width: Upper limit on the latents of a pooled map.
    """

    pool: Pool = ("mean", 4)
    agreement: float = 1.0
    std: float | None = None
    max_width: int = 4096

    name: ClassVar[str] = "sll"
    source: ClassVar[str] = "Yin, Corradi 2025"
    reads: ClassVar[frozenset[str]] = frozenset({"input", "output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool("pool", self.pool)
        check_not_negative("agreement", self.agreement)
        check_positive("std", 1.0 if self.std is None else self.std)
        check_width("max_width", self.max_width)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return feature_spec(feature, self.pool, self.max_width)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return the random projection of one block."""
        return ClassTable(
            num_classes, learned=False, std=self.std, bias=False, seed=seed, device=device
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the cross-entropy of the posterior, 0-dim: the loss of the first block."""
        return bll_kernels.linear_cross_entropy(feature, _projection(message), labels, pool=pool)

    def input_loss(
        self,
        feature: Tensor,
        labels: Tensor,
        message: Message | None,
        pool: Pool | None,
        before: Before,
    ) -> Tensor:
        """Return the loss of a block that has one before it, 0-dim."""
        fit = self.loss(feature, labels, message, pool)
        logits = _logits(feature, message, pool)
        with torch.no_grad():
            neighbour = _logits(*before)
        distance = bhattacharyya(logits, neighbour)
        weight = surrounding_weight(distance.shape)
        if weight is not None:
            distance = distance * weight
        return fit + self.agreement * distance.mean()


def bhattacharyya(logits: Tensor, other: Tensor) -> Tensor:
    """Bhattacharyya distances between the softmaxes of two [B, C] tensors, [B]."""
    both = torch.logsumexp((logits + other) / 2, 1)
    return (torch.logsumexp(logits, 1) + torch.logsumexp(other, 1)) / 2 - both


def _logits(feature: Tensor, message: Message | None, pool: Pool | None) -> Tensor:
    """R pool(h), [B, C], in at least float32."""
    rows = bll_kernels.grid_pool(feature, *pool) if pool else feature
    projection = _projection(message)
    scores = functional.linear(rows, projection.to(rows.dtype))
    return scores.to(projection.dtype)


def _projection(message: Message | None) -> Tensor:
    if not isinstance(message, ClassTable):
        raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
    return message.table
