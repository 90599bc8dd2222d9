"""Projected labels as targets: rules `drtp` and `tpsgd`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

import bll_kernels
from bll.features import FeatureSpec, Pool, feature_spec
from bll.feedback import ClassTable, Message
from bll.rules.base import Rule
from bll.rules.checks import check_pool, check_positive, check_width
from bll_kernels.families import Family


@dataclass(frozen=True)
class DrtpRule(Rule):
    """The label through one fixed random matrix per block stands for the error.

        d/dh_k = -B_k[y] / B,   B_k in R^{C x D} fixed, random

    The sign of the output's error is that of one-hot y minus a probability, hence y in its place.
    It is the gradient of the evidence loss of a unit-variance Gaussian whose messages are B_k:
    -log E_alpha[beta] = -(h . b_y + |b_y|^2 / 2), which also is the value reported. It has no lower
    bound: only a block that normalises or saturates keeps it finite. Block inputs are detached.

    Frenkel, Lefebvre, Bol, "Learning without feedback: fixed random learning signals allow for
    feedforward training of deep neural networks", 2021 (arXiv 1909.01311).

    Attributes:
        pool: Pooling of feature maps, (kind, grid).
        std: Standard deviation of the draw of B_k; None: 1 / sqrt(latents).
        max_width: Upper limit on the latents of a pooled map.
    """

    pool: Pool = ("mean", 4)
    std: float | None = None
    max_width: int = 4096

    name: ClassVar[str] = "drtp"
    source: ClassVar[str] = "Frenkel, Lefebvre, Bol 2021"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_pool("pool", self.pool)
        check_positive("std", 1.0 if self.std is None else self.std)
        check_width("max_width", self.max_width)

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read."""
        return feature_spec(feature, self.pool, self.max_width)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return the fixed random targets of one block."""
        return ClassTable(
            num_classes, learned=False, std=self.std, bias=False, seed=seed, device=device
        )

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the evidence loss of the projected label, 0-dim."""
        return bll_kernels.evidence_loss(
            feature, _targets(message), "gaussian", labels=labels, pool=pool
        )


@dataclass(frozen=True)
class TpsgdRule(DrtpRule):
    """The feature is drawn to a fixed random target of its class.

        d/dh_k = (h - B_k[y]) / 2B

    The local mean squared error |h - B_k[y]|^2, up to its factor; computed as the stopped
    KL(rho || alpha) of a message N(B_k[y], 1), whose value (|h - B_k[y]|^2 / 8 and a constant) is
    the one reported. Block inputs are detached.

    Lomnitz, Daniels, Zhang, Piacentino, "Learning with local gradients at the edge", 2022 (arXiv
    2208.08503), which compares the target with the layer's activation, as here.

    Attributes:
        std: Standard deviation of the draw of B_k; None: 1.
    """

    name: ClassVar[str] = "tpsgd"
    source: ClassVar[str] = "Lomnitz et al. 2022"

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return the fixed random targets of one block."""
        std = 1.0 if self.std is None else self.std
        return ClassTable(num_classes, learned=False, std=std, bias=False, seed=seed, device=device)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the KL divergence to the posterior of the projected label, 0-dim."""
        return bll_kernels.posterior_kl(
            feature,
            _targets(message),
            Family("gaussian-precision", tau=1.0),
            labels=labels,
            pool=pool,
        )


def _targets(message: Message | None) -> Tensor:
    if not isinstance(message, ClassTable):
        raise TypeError(f"message: expected a ClassTable, got {type(message).__name__}")
    return message.table
