"""A local linear read-out with cross-entropy: rule `pred`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import bll_kernels
from bll.features import STANDARDIZE, FeatureSpec, Pool, feature_spec, standardized
from bll.feedback import ClassTable, Message
from bll.rules.base import Rule
from bll.rules.checks import check_choice, check_not_negative, check_pool, check_width

READ_OUTS = ("trained", "fixed")


@dataclass(frozen=True)
class PredRule(Rule):
    """Cross-entropy of a linear classifier on the block's pooled feature.

        loss = CE(W pool(h) + w, y)        d/dh = pool^T W^T (softmax - y) / B

    h is the block's output, whose input is detached; W and w are trained by this loss alone. The
    published read-out starts at zero (`std=0`); here it starts as the table of `bll` does, so that
    the two rules differ in the prior |b_c|^2 / 2 and in nothing else.

    Nokland, Eidnes, "Training neural networks with local error signals", 2019 (arXiv 1901.06656),
    the "pred" loss.

    Attributes:
        pool: Pooling of feature maps, (kind, grid).
        read_out: "trained", or "fixed": W stays as drawn and w is learned.
        std: Standard deviation of the draw of W; None: 1 / sqrt(latents).
        max_width: Upper limit on the latents of a pooled map.
        standardize: "none", "channels", "batch" or "sample", as in `bll`.
    """

    pool: Pool = ("mean", 4)
    read_out: str = "trained"
    std: float | None = None
    max_width: int = 4096
    standardize: str = "none"

    name: ClassVar[str] = "pred"
    source: ClassVar[str] = "Nokland, Eidnes 2019"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool("pool", self.pool)
        check_choice("read_out", self.read_out, READ_OUTS)
        check_choice("standardize", self.standardize, STANDARDIZE)
        check_not_negative("std", 0.0 if self.std is None else self.std)
        check_width("max_width", self.max_width)
        if self.read_out == "fixed" and self.std == 0:
            raise ValueError("std: expected more than 0 for a fixed read-out, got 0")

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return feature_spec(feature, self.pool, self.max_width)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh read-out for one block."""
        return ClassTable(
            num_classes,
            learned=self.read_out == "trained",
            std=self.std,
            bias=True,
            seed=seed,
            device=device,
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the read-out's cross-entropy, 0-dim."""
        feature, pool = standardized(feature, pool, self.standardize)
        return read_out_loss(feature, labels, message, pool)


def read_out_loss(
    feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
) -> Tensor:
    """Cross-entropy of the linear read-out `message` on the pooled feature, 0-dim."""
    if not isinstance(message, ClassTable):
        raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
    return bll_kernels.linear_cross_entropy(
        feature, message.table, labels, bias=message.bias, pool=pool
    )
