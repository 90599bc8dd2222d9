"""A projection of the whole activation to the classes: rule `mono-forward`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import bll_kernels
from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import ClassTable, Message
from bll.rules.base import Rule
from bll.rules.checks import check_not_negative


@dataclass(frozen=True)
class MonoForwardRule(Rule):
    """Cross-entropy of goodness scores G = M h of the whole activation, one per class.

        loss = CE(M h, y),  M in R^{C x d} without bias        d/dh = M^T (softmax - y) / B

    As `pred`, but h is the full activation (a map is flattened, not pooled) and there is no bias.
    The block's input is detached; M is trained by this loss alone. The last block's own linear
    layer is its M, and gives the prediction. The paper trains layer after layer, each to its end;
    here all blocks learn at once. Maps cost C x d weights: see `pred` for wide ones.

    Gong, Li, Abdulla, "Mono-Forward: backpropagation-free algorithm for efficient neural network
    training harnessing local errors", 2025 (arXiv 2501.09238).

    Attributes:
        std: Standard deviation of the draw of M; None: 1 / sqrt(d).
    """

    std: float | None = None

    name: ClassVar[str] = "mono-forward"
    source: ClassVar[str] = "Gong, Li, Abdulla 2025"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_negative("std", 0.0 if self.std is None else self.std)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh projection for one block."""
        return ClassTable(
            num_classes, learned=True, std=self.std, bias=False, seed=seed, device=device
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the cross-entropy of the goodness scores, 0-dim."""
        if not isinstance(message, ClassTable):
            raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
        return bll_kernels.linear_cross_entropy(feature.flatten(1), message.table, labels)
