"""Class-normalised block-local learning: rule `bll`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import bll_kernels
from bll.features import Pool
from bll.feedback import Message
from bll.rules.message import MessageRule
from bll_kernels.families import Family


@dataclass(frozen=True)
class BllRule(MessageRule):
    """Minus the log-evidence of the label, normalised over classes (docs/method.md).

    With s_c = log E_alpha[beta_c], the loss is -log softmax(s + bias)_y. With the default family,
    whose message is a Gaussian density over the latents, s_c = -k |a - b_c|^2 / 2 up to what all
    classes share, k = tau / (1 + tau): a local linear classifier with a prior on the table. The
    channels of a pooled map have mean 0 and variance 1 in the batch, so that no loss falls because
    features grow. The defaults are those that did best by measurement (docs/learning.md).
    """

    family: Family | str = "gaussian-precision"
    pool: Pool = ("mean", 14)
    standardize: str = "channels"

    name: ClassVar[str] = "bll"
    source: ClassVar[str] = "Kappel et al., arXiv 2305.14974; normalised over classes here"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the class-normalised evidence loss of one block, 0-dim."""
        table = self._class_table(message)
        latents, pool = self._read(feature, pool)
        return bll_kernels.class_evidence_loss(
            latents,
            self._rows(table, latents),
            labels,
            self._family,
            bias=table.bias,
            pool=pool,
            tilt=self.tilt,
        )
