"""The options that the rules with a class message share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

import bll_kernels
from bll.features import STANDARDIZE, FeatureSpec, Pool, feature_spec, standardized
from bll.feedback import ClassTable, Message
from bll.feedback_chain import FeedbackBlock
from bll.rules.base import Rule
from bll.rules.checks import check_choice, check_pool, check_positive, check_width
from bll_kernels.families import Family, get_family

# Post-activation features are of order one, where a Bernoulli mean hardly moves (docs/method.md).
_DEFAULT_GAIN = {"bernoulli": 4.0}
_FEEDBACK = ("learned", "fixed", "chained")


@dataclass(frozen=True)
class MessageRule(Rule):
    """A rule whose loss compares a block's feature with one message per class.

    Attributes:
        family: Exponential family of the messages, a name or a `Family`.
        feedback: "learned" (the table is trained by the block's own loss), "fixed", or "chained"
            (a learned feedback block per block, fed by the next block's; see `FeedbackBlock`).
        pool: Pooling of feature maps, (kind, grid).
        standardize: Whether latents are brought to mean 0 and variance 1 before they are read:
            "channels" (each channel of a pooled map over cells and batch; vectors and tokens not),
            "batch" (also each latent of vectors and tokens over the batch), "sample" (each row
            over its own latents), or "none".
        tilt: Power the message is raised to.
        gain: Factor on the feature before it is read as a parameter; None: 4 for bernoulli, else 1.
        std: Standard deviation of the table's draw; None: 1 / sqrt(latents).
        max_width: Upper limit on the latents of a pooled map.
        feedback_width: Units of a chained feedback block.
    """

    family: Family | str = "gaussian"
    feedback: str = "learned"
    pool: Pool = ("mean", 4)
    standardize: str = "none"
    tilt: float = 1.0
    gain: float | None = None
    std: float | None = None
    max_width: int = 4096
    feedback_width: int = 64
    _family: Family = field(init=False, repr=False, compare=False)

    has_bias: ClassVar[bool] = True

    def __post_init__(self) -> None:
        family = get_family(self.family) if isinstance(self.family, str) else self.family
        if family.name == "gaussian-diagonal":
            raise ValueError(
                "family: 'gaussian-diagonal' has two parameters per latent, a block's feature one; "
                "expected 'gaussian', 'gaussian-precision', 'bernoulli' or 'categorical'"
            )
        check_choice("feedback", self.feedback, _FEEDBACK)
        check_pool("pool", self.pool)
        check_choice("standardize", self.standardize, STANDARDIZE)
        check_positive("tilt", self.tilt)
        check_positive("gain", 1.0 if self.gain is None else self.gain)
        check_positive("std", 1.0 if self.std is None else self.std)
        check_width("max_width", self.max_width)
        check_width("feedback_width", self.feedback_width)
        object.__setattr__(self, "_family", family)
        if self.feedback == "chained":
            # Instances of a class whose other forms are strictly local.
            object.__setattr__(self, "reads", self.reads | {"next-feedback"})

    @property
    def feature_gain(self) -> float:
        """The factor on the feature."""
        return _DEFAULT_GAIN.get(self._family.name, 1.0) if self.gain is None else self.gain

    def describe(self) -> dict[str, object]:
        """Return the rule's name, family and options as plain data."""
        own = {"gaussian-precision": "tau", "categorical": "group"}.get(self._family.name)
        return {
            "rule": self.name,
            "family": self._family.name,
            **({own: getattr(self._family, own)} if own else {}),
            "feedback": self.feedback,
            "pool": list(self.pool),
            "standardize": self.standardize,
            "tilt": self.tilt,
            "gain": self.feature_gain,
        }

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return feature_spec(feature, self.pool, self.max_width)

    def make_message(
        self, num_classes: int, seed: int, device: torch.device | None
    ) -> ClassTable | FeedbackBlock:
        """Return a fresh class table, or feedback block, for one block."""
        if self.feedback == "chained":
            return FeedbackBlock(
                num_classes,
                width=self.feedback_width,
                std=self.std,
                bias=self.has_bias,
                seed=seed,
                device=device,
            )
        return ClassTable(
            num_classes,
            learned=self.feedback == "learned",
            std=self.std,
            bias=self.has_bias,
            seed=seed,
            device=device,
        )

    def _read(self, feature: Tensor, pool: Pool | None) -> tuple[Tensor, Pool | None]:
        """Standardise and apply the gain; a map is pooled first, and needs no pooling then."""
        feature, pool = standardized(feature, pool, self.standardize)
        if self.feature_gain == 1.0:
            return feature, pool
        if pool is None:
            return feature * self.feature_gain, None
        return bll_kernels.grid_pool(feature, *pool) * self.feature_gain, None

    def _rows(self, table: ClassTable | FeedbackBlock, latents: Tensor) -> Tensor:
        """Messages of all classes; autocast narrows those of a feedback block below float32."""
        rows = table.rows()
        return rows.to(torch.promote_types(rows.dtype, latents.dtype))

    def _class_table(self, message: Message | None) -> ClassTable | FeedbackBlock:
        if not isinstance(message, (ClassTable, FeedbackBlock)):
            raise TypeError(
                f"message: expected a ClassTable or FeedbackBlock, got {type(message).__name__}"
            )
        return message
