"""Labels of sequences: which rows of [B, T, D] features and logits count, and for which class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

IGNORE_INDEX = -100
_NO_INDEX = torch.iinfo(torch.int64).min


class Rows(NamedTuple):
    """A batch as a rule sees it.

    Attributes:
        feature: [N, D], or a map [B, C, H, W].
        labels: [N], int64.
        weight: [N] factors under which a mean over N is one over the rows that count; None: all do.
    """

    feature: Tensor
    labels: Tensor
    weight: Tensor | None


@dataclass(frozen=True)
class TokenOptions:
    """How [B, T, D] features meet labels.

    Attributes:
        per_position: With one label per sample, every position gets its message; otherwise the
            features are averaged over T first. Labels [B, T] are always per position.
        ignore_index: Label of the positions that do not count; None: all count.
        shift: Position t is to predict label t + 1, as where the labels are the input ids.
    """

    per_position: bool = False
    ignore_index: int | None = IGNORE_INDEX
    shift: bool = False

    def __post_init__(self) -> None:
        if self.shift and self.ignore_index is None:
            raise ValueError(
                "shift_labels: the last position has nothing to predict; expected an ignore_index"
            )

    def aligned(self, labels: Tensor) -> Tensor:
        """Return the labels, moved so that each stands at the position that predicts it."""
        if not self.shift:
            return labels
        if labels.dim() != 2:
            raise ValueError(
                f"labels: shift_labels expects labels per token, shape [batch, T], got "
                f"{list(labels.shape)}"
            )
        return functional.pad(labels[:, 1:], (0, 1), value=self.ignore_index)

    def counted(self, labels: Tensor) -> Tensor | int:
        """Return how many labels count, at least 1; a 0-dim tensor where values decide."""
        if self.ignore_index is None or labels.dim() == 1:
            return max(labels.numel(), 1)
        return (labels != self.ignore_index).sum().clamp(min=1)

    def rows(self, feature: Tensor, labels: Tensor) -> Rows:
        """Return the rows that a rule takes its loss on.

        Positions are flattened in front of the rule, so that rules know no sequences. Those that
        do not count keep their place with weight 0 and label 0: no shape depends on the labels.

        Args:
            feature: [B, D], [B, T, D] or [B, C, H, W].
            labels: [B], or [B, T] beside a [B, T, D] feature.

        Raises:
            ValueError: Labels per token, and no feature of as many positions.
        """
        if labels.dim() == 1:
            if feature.dim() != 3:
                return Rows(feature, labels, None)
            if not self.per_position:
                return Rows(feature.mean(dim=1), labels, None)
            labels = labels[:, None].expand(feature.shape[:2])
            return Rows(feature.flatten(0, 1), labels.reshape(-1), None)
        if feature.dim() != 3 or feature.shape[:2] != labels.shape:
            raise ValueError(
                f"labels: expected one class per sample, shape [{len(feature)}], or one per token "
                f"beside a feature of shape [batch, T, D]; got labels {list(labels.shape)} and a "
                f"feature {list(feature.shape)}; several labels per sample are not supported"
            )
        flat = labels.reshape(-1)
        feature = feature.flatten(0, 1)
        if self.ignore_index is None:
            return Rows(feature, flat, None)
        counts = flat != self.ignore_index
        factor = flat.numel() / self.counted(labels)
        return Rows(feature, flat.masked_fill(~counts, 0), counts * factor)

    def cross_entropy(self, logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
        """Return the mean cross-entropy over what counts, 0-dim, in at least float32.

        Args:
            logits: [B, C] or [B, T, C].
            labels: [B] or [B, T].
            smoothing: Label smoothing.
        """
        wide = logits if logits.dtype == torch.float64 else logits.float()
        labels = labels.to(logits.device, non_blocking=True)
        if labels.dim() == 1:
            return functional.cross_entropy(wide, labels, label_smoothing=smoothing)
        # Without an ignore index none is to be ignored, and any negative label is to be refused.
        total = functional.cross_entropy(
            wide.flatten(0, 1),
            labels.reshape(-1),
            ignore_index=_NO_INDEX if self.ignore_index is None else self.ignore_index,
            label_smoothing=smoothing,
            reduction="sum",
        )
        return total / self.counted(labels)
