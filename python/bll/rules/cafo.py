"""The cascaded forward algorithm: predictors on fixed blocks, which vote. Rule `cafo`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

import bll_kernels
from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import ClassTable, Message
from bll.rules.base import Rule
from bll.rules.checks import check_not_negative


@dataclass(frozen=True)
class CafoRule(Rule):
    """A linear classifier on every block, whose layers stay as they are; all blocks vote.

        loss = CE(W h + w, y)        d/dh = 0
        prediction: the mean of softmax(W_k h_k + w_k) over all blocks (`bll.predict`)

    h is the block's output whole, held constant; W and w are trained by this loss alone. The last
    block is trained like any last block, and votes with the model's own output. Batch statistics of
    the fixed blocks move, and an optimiser's weight decay still acts on them.

    Zhao et al., "The cascaded forward algorithm for neural network training", 2023 (arXiv
    2303.09728), with its cross-entropy predictors. Blocks are fixed as drawn there (CaFo-Rand), or
    trained by direct feedback alignment before (CaFo-DFA): train with `dfa`, unwrap, wrap with
    `cafo`. There predictors are trained one after the other; here at once, which is the same, since
    none reads another.

    Attributes:
        std: Standard deviation of the draw of W; None: 1 / sqrt(D).
    """

    std: float | None = None

    name: ClassVar[str] = "cafo"
    source: ClassVar[str] = "Zhao et al. 2023"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True
    votes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative("std", 0.0 if self.std is None else self.std)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh predictor for one block."""
        return ClassTable(
            num_classes, learned=True, std=self.std, bias=True, seed=seed, device=device
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the predictor's cross-entropy, 0-dim, with a gradient of zeros to the feature."""
        table = _predictor(message)
        rows = feature.detach().flatten(1)
        loss = bll_kernels.linear_cross_entropy(rows, table.table, labels, bias=table.bias)
        return loss + 0.0 * feature.flatten()[:1].sum().to(loss.dtype)

    def scores(self, feature: Tensor, message: Message | None, pool: Pool | None) -> Tensor:
        """Return the predictor's scores, [B, C]."""
        table = _predictor(message)
        weight = table.table.to(feature.dtype)
        bias = None if table.bias is None else table.bias.to(feature.dtype)
        return functional.linear(feature.flatten(1), weight, bias)


def _predictor(message: Message | None) -> ClassTable:
    if not isinstance(message, ClassTable):
        raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
    return message
