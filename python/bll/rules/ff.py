"""The forward-forward algorithm: good inputs apart from bad ones. Rule `ff`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import Message
from bll.rules.base import Rule
from bll.rules.checks import check_positive
from bll.tokens import IGNORE_INDEX

#: From inputs [B, ...], labels [B] and the number of classes to inputs that show the label.
Overlay = Callable[[Tensor, Tensor, int], Tensor]


@dataclass(frozen=True)
class FfRule(Rule):
    """Blocks are active on an input that shows its own label, and quiet on one that shows another.

        g(h) = mean_j h_j^2
        loss = mean_i [softplus(theta - g(h_i+)) + softplus(g(h_i-) - theta)] / 2
        prediction: the class whose label, shown, gives the largest sum of g (`bll.predict`)

    `x, y = bll.contrast(model, x, y)` makes three rows of each sample: x with its label written
    over its first C elements (as one-hot times its largest element), x with a wrong label, and
    x itself. h+ and h- are a block's outputs on the first two; the last block learns its
    cross-entropy on the third. The prediction leaves the first block out where there are others.
    Inputs of blocks are detached.

    Hinton, "The forward-forward algorithm: some preliminary investigations", 2022 (arXiv
    2212.13345), with goodness the mean of squares and not their sum. The paper divides each layer's
    input by its length, so that the length of the one before says nothing. Here the network is run
    as it is: put a normalisation at the head of each block if that is wanted.

    Attributes:
        threshold: theta.
        overlay: Shows labels, for inputs where the first C elements will not do; a module-level
            function, so that the model pickles. None: as above.
    """

    threshold: float = 1.0
    overlay: Overlay | None = None

    name: ClassVar[str] = "ff"
    source: ClassVar[str] = "Hinton 2022"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True
    contrasts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_positive("threshold", self.threshold)
        if not (self.overlay is None or callable(self.overlay)):
            raise ValueError(f"overlay: expected a callable or None, got {self.overlay!r}")

    def describe(self) -> dict[str, object]:
        """Return the rule's name, family and options as plain data."""
        made_by = getattr(self.overlay, "__qualname__", self.overlay)
        return {**super().describe(), "overlay": made_by}

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the contrast of the goodness, 0-dim.

        Args:
            feature: [3 B, D], or a map: per sample its own label shown, another, and none.
            labels: [3 B]: -100, -100 and the label.
            message: None.
            pool: None.

        Raises:
            ValueError: The batch is not one of triples.
            RuntimeError: The labels are not those of triples (on CUDA when the device is waited
                for).
        """
        if len(labels) % 3:
            raise ValueError(
                f"labels: rule 'ff' expected the triples that bll.contrast makes, got a batch of "
                f"{len(labels)}"
            )
        shown = labels.view(-1, 3)[:, :2] == IGNORE_INDEX
        torch._assert_async(
            shown.all(), "labels: rule 'ff' expected the triples that bll.contrast makes"
        )
        above = self.scores(feature, message, pool).squeeze(1) - self.threshold
        return (functional.softplus(-above[0::3]) + functional.softplus(above[1::3])).mean() / 2

    def scores(self, feature: Tensor, message: Message | None, pool: Pool | None) -> Tensor:
        """Return the goodness, [B, 1], in at least float32."""
        wide = feature if feature.dtype == torch.float64 else feature.float()
        return wide.flatten(1).square().mean(1, keepdim=True)

    def show(self, inputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """Return inputs that show labels.

        Raises:
            TypeError: The inputs are not floating-point.
            ValueError: A sample has fewer elements than there are classes.
        """
        if self.overlay is not None:
            return self.overlay(inputs, labels, num_classes)
        if not inputs.is_floating_point():
            raise TypeError(f"inputs: expected floating-point inputs, got dtype {inputs.dtype}")
        if inputs[:1].numel() < num_classes:
            raise ValueError(
                f"inputs: expected at least {num_classes} elements per sample, one per class, got "
                f"{inputs[:1].numel()}"
            )
        rows = inputs.flatten(1)
        one_hot = functional.one_hot(labels, num_classes).to(rows.dtype)
        shown = one_hot * rows.amax(1, keepdim=True)
        return torch.cat([shown, rows[:, num_classes:]], 1).view(inputs.shape)
