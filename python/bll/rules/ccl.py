"""Counter-current learning: a feedback network from the label meets the block. Rule `ccl`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

import bll_kernels
from bll.features import FeatureSpec, Pool, feature_spec
from bll.feedback import Message
from bll.feedback_chain import FeedbackBlock
from bll.rules.base import Rule
from bll.rules.checks import check_not_negative, check_pool, check_width
from bll.rules.rows import unit_rows


@dataclass(frozen=True)
class CclRule(Rule):
    """The cosine of a sample's feature and of each class's feedback is 1 for its own class, else 0.

        S = norm(pool(h)) norm(b)^T, [B, C]
        loss = mean_ic (S_ic - [y_i = c])^2 + decorrelation D
        D = mean_cd (norm(b)_c . norm(b)_d - [c = d])^2

    b are the messages of a learned feedback network that runs from the one-hot labels down, one
    layer per block (`FeedbackBlock`), on one row per class. The loss trains both sides, the block
    and its feedback block; the block's input and the state of the feedback block above are
    detached. norm centres a row over its features and divides it by its length. D is the Gram loss
    of the C messages against the identity.

    Kao, Hariharan, "Counter-current learning: a biologically plausible dual network approach for
    deep learning", 2024 (arXiv 2409.19841). There a feedback layer has the width of the layer it
    meets and feeds the next; here a state of `feedback_width` units is handed on and a linear layer
    reads it out.

    Attributes:
        pool: Pooling of feature maps, (kind, grid).
        decorrelation: Weight of D.
        max_width: Upper limit on the latents of a pooled map.
        feedback_width: Units of a feedback block's state.
    """

    pool: Pool = ("mean", 4)
    decorrelation: float = 0.5
    max_width: int = 4096
    feedback_width: int = 64

    name: ClassVar[str] = "ccl"
    source: ClassVar[str] = "Kao, Hariharan 2024"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback", "next-feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool("pool", self.pool)
        check_not_negative("decorrelation", self.decorrelation)
        check_width("max_width", self.max_width)
        check_width("feedback_width", self.feedback_width)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return feature_spec(feature, self.pool, self.max_width)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh feedback block."""
        return FeedbackBlock(
            num_classes,
            width=self.feedback_width,
            std=1.0,
            bias=False,
            seed=seed,
            device=device,
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the loss of one block and its feedback block, 0-dim."""
        if not isinstance(message, FeedbackBlock):
            raise TypeError(f"message: expected a FeedbackBlock, got {type(message).__name__}")
        messages = message.rows()
        rows = bll_kernels.grid_pool(feature, *pool) if pool else feature
        cosines = unit_rows(rows) @ unit_rows(messages).T
        own = functional.one_hot(labels, len(messages)).to(cosines.dtype)
        matched = (cosines - own).square().mean()
        apart = bll_kernels.gram_loss(messages, "identity")
        return matched + self.decorrelation * apart
