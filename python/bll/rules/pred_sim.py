"""Read-out and similarity matching together: rule `pred-sim`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from bll.features import Pool
from bll.feedback import Message, MessageParts
from bll.rules.checks import check_choice, check_fraction
from bll.rules.pred import PredRule, read_out_loss
from bll.rules.sim import PROJECTIONS, Projection, similarity_loss


@dataclass(frozen=True)
class PredSimRule(PredRule):
    """The two losses of Nokland and Eidnes, weighted.

        loss = (1 - beta) pred + beta sim,   beta = 0.99

    with `pred` and `sim` as in the rules of these names, each with weights of its own; the block's
    input is detached.

    Nokland, Eidnes, "Training neural networks with local error signals", 2019 (arXiv 1901.06656),
    the "predsim" loss.

    Attributes:
        beta: Weight of the similarity loss, in [0, 1].
        projection: "trained", "fixed" or "none"; see `SimRule`.
    """

    beta: float = 0.99
    projection: str = "trained"

    name: ClassVar[str] = "pred-sim"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction("beta", self.beta)
        check_choice("projection", self.projection, PROJECTIONS)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh read-out and a fresh projection for one block."""
        return MessageParts(
            read_out=super().make_message(num_classes, seed, device),
            similarity=Projection(num_classes, self.projection, seed=seed, device=device),
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the weighted sum of the two losses of one block, 0-dim."""
        if not isinstance(message, MessageParts):
            raise TypeError(f"message: expected MessageParts, got {type(message).__name__}")
        parts = message.parts()
        pred = read_out_loss(feature, labels, parts["read_out"], pool)
        sim = similarity_loss(feature, labels, parts["similarity"])
        return (1 - self.beta) * pred + self.beta * sim
