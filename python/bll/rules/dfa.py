"""Direct feedback alignment: the output's error through one random matrix per block. Rule `dfa`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import ClassTable, Message
from bll.rules.base import Rule
from bll.rules.checks import check_positive


@dataclass(frozen=True)
class DfaRule(Rule):
    """Every block's output gets the projected error of the model's output as its gradient.

        d/dh_k = e B_k,   e = dL/dlogits = (softmax - y) / B,   B_k in R^{C x d} fixed, random

    Inside a block this is carried on by backpropagation, so a block of one layer is the published
    rule. Between blocks nothing flows: inputs are detached. But e needs the whole forward pass, so
    blocks cannot learn before the output is known. No loss has this gradient; the value reported
    for a block is 0, and the sum of losses is the model's cross-entropy.

    Nokland, "Direct feedback alignment provides learning in deep neural networks", 2016 (arXiv
    1609.01596).

    Attributes:
        std: Standard deviation of the draw of B_k; None: 1 / sqrt(d).
    """

    std: float | None = None

    name: ClassVar[str] = "dfa"
    source: ClassVar[str] = "Nokland 2016"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "feedback", "error"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("std", 1.0 if self.std is None else self.std)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh random matrix for one block."""
        return ClassTable(
            num_classes, learned=False, std=self.std, bias=False, seed=seed, device=device
        )

    def error_loss(
        self, feature: Tensor, error: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return 0 with the gradient e B_k."""
        if not isinstance(message, ClassTable):
            raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
        table = message.table.to(feature.dtype)
        # Two products with the table, and no [B, d] tensor beside the gradient.
        along = (functional.linear(feature.flatten(1), table) * error.to(feature.dtype)).sum()
        return (along - along.detach()).to(message.table.dtype)
