"""Blocks that do not learn: the floor that every rule is measured from. Rule `frozen`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import Message
from bll.rules.base import Rule


@dataclass(frozen=True)
class FrozenRule(Rule):
    """Every block before the last stays as initialised; the last learns on random features.

        loss = 0        d/dh = 0

    Batch statistics still move, and an optimiser's weight decay still acts.
    """

    name: ClassVar[str] = "frozen"
    source: ClassVar[str] = "a floor, no publication"
    reads: ClassVar[frozenset[str]] = frozenset({"output"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return flat_spec(feature)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return 0 with a gradient of zeros."""
        wide = feature if feature.dtype.itemsize >= 4 else feature.float()
        return 0.0 * wide.flatten()[:1].sum()
