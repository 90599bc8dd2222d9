"""The prototype form of block-local learning: rule `bll-proto`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import bll_kernels
from bll.features import FeatureSpec, Pool, repooled
from bll.feedback import ClassTable, Message, MessageParts
from bll.rules.checks import check_choice, check_not_negative
from bll.rules.pred import PredRule, read_out_loss
from bll.rules.rows import unit_rows

_PROTOTYPE_POOL: Pool = ("max", 1)
_SCALES = ("mean", "released")
_ABSENT = ("keep", "zero")


@dataclass(frozen=True)
class BllProtoRule(PredRule):
    """Decorrelation, alignment with a prototype of the class, and a local read-out.

    With x_i the feature of sample i (a map max-pooled over space), centred over its features and
    divided by its norm, W the feedback table and P_c the mean of the x_i of class c:

        loss =  decorrelation / B^2 sum_{i != j} (x_i . x_j)^2
              + alignment sign / B sum_i sg(W[y_i]) . x_i
              + prediction CE(read-out(pool h), y)
              + 1/2 sum_{c present} |W_c - sg(P_c)|^2

    The last term alone trains the table, from a stopped feature, and the others hold it constant
    at its value before the step. The block's input is detached. P and the alignment come from one
    class-mean pass (sum_i W[y_i] . x_i = sum_c n_c W_c . P_c), so nothing loops over classes or
    waits for the device.

    Kappel et al., "Block-local learning", arXiv 2305.14974, in the form of the authors' public
    ImageNet code, from which the weights 0.7, 0.25 and 0.5 are. That code adds the alignment
    (`sign=1`, which drives features away from their prototype), divides it by B^2
    (`scale="released"`), draws prototypes of absent classes to zero (`absent="zero"`) and in
    effect does not train its read-outs (`read_out="fixed"`). It also smooths labels and gives the
    table an optimiser of its own; here the block's serves.

    Attributes:
        decorrelation: Weight of the decorrelation.
        alignment: Weight of the alignment.
        prediction: Weight of the read-out's cross-entropy.
        sign: -1: features are drawn to their prototype; 1: driven away.
        scale: "mean": the alignment is a mean over samples; "released": divided by B once more.
        absent: "keep": prototypes of classes absent from the batch stay; "zero": drawn to zero.
    """

    decorrelation: float = 0.7
    alignment: float = 0.25
    prediction: float = 0.5
    sign: int = -1
    scale: str = "mean"
    absent: str = "keep"

    name: ClassVar[str] = "bll-proto"
    source: ClassVar[str] = "Kappel et al., arXiv 2305.14974, public ImageNet code"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative("decorrelation", self.decorrelation)
        check_not_negative("alignment", self.alignment)
        check_not_negative("prediction", self.prediction)
        check_choice("sign", self.sign, (-1, 1))
        check_choice("scale", self.scale, _SCALES)
        check_choice("absent", self.absent, _ABSENT)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return a fresh prototype table and a fresh read-out for one block."""
        table = ClassTable(num_classes, learned=True, std=0.0, bias=False, seed=seed, device=device)
        return ProtoMessage(
            prototypes=table, read_out=super().make_message(num_classes, seed, device)
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the weighted sum of the terms of one block, 0-dim."""
        if not isinstance(message, ProtoMessage):
            raise TypeError(f"message: expected a ProtoMessage, got {type(message).__name__}")
        parts = message.parts()
        prototypes, read_out = parts["prototypes"], parts["read_out"]
        if not isinstance(prototypes, ClassTable):
            raise TypeError(f"prototypes: expected a ClassTable, got {type(prototypes).__name__}")
        table = prototypes.table
        rows = bll_kernels.grid_pool(feature, *_PROTOTYPE_POOL) if pool else feature
        means, counts = bll_kernels.class_means(unit_rows(rows), labels, len(table))
        gap = (table - means.detach()).square().sum(1)
        if self.absent == "keep":
            gap = gap * (counts > 0)
        aligned = ((means * table.detach()).sum(1) * counts).sum() / len(labels)
        if self.scale == "released":
            aligned = aligned / len(labels)
        decorrelation = bll_kernels.gram_loss(rows, "identity")
        prediction = read_out_loss(feature, labels, read_out, pool)
        loss = self.decorrelation * decorrelation + self.prediction * prediction
        return loss + self.sign * self.alignment * aligned + gap.sum() / 2


class ProtoMessage(MessageParts):
    """A prototype table and a read-out, which pool a map differently."""

    def feature_of(self, name: str, feature: FeatureSpec) -> FeatureSpec:
        """Return how the named part reads the feature."""
        return repooled(feature, _PROTOTYPE_POOL, 1) if name == "prototypes" else feature
