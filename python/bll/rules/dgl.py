"""Decoupled greedy learning with an auxiliary network per block: rule `dgl`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

import bll_kernels
from bll.features import FeatureSpec, Pool, flat_spec
from bll.feedback import Message
from bll.rules.base import Rule
from bll.rules.checks import check_fraction, check_width
from bll_kernels.pipeline.seeds import seeded

#: From how a block's feature is read to a network from features to rows [B, D'].
AuxiliaryMaker = Callable[[FeatureSpec], nn.Module]


@dataclass(frozen=True)
class DglRule(Rule):
    """Cross-entropy of a small network that reads the block's output.

        loss = CE(W aux(h) + w, y)        d/dh through aux, which this loss alone trains

    The block's input is detached. Without `aux`, a map goes through pooling to half its size,
    three 1x1 convolutions with batch norm and ReLU, and pooling to 2 x 2 cells; then, like a
    vector, through linear layers with batch norm and ReLU. The last linear layer and the loss are
    one kernel. Since the networks are made for the shape of the feature, `wrap` needs an `example`.
    With `aux="momentum"` that network stands behind a moving average E of the first module of the
    next block and a trained linear map V: it reads E(h) + V h. E then moves before every loss of
    the block, E <- decay E + (1 - decay) of the module, and no loss trains it. With
    `aux="augmented"` the network is made of fresh copies of the first modules of `layers` later
    blocks at equal distances, and linear maps between them where shapes do not fit.

    Belilovsky, Eickenberg, Oyallon, "Decoupled greedy learning of CNNs", 2020 (arXiv 1901.08164),
    whose auxiliary network is the one above. Su et al., "Momentum auxiliary network for supervised
    local learning", 2024 (arXiv 2407.05623), of which `aux="momentum"` is the average with its
    decay; V stands for its learnable bias. Ma et al., "Scaling supervised local learning with
    augmented auxiliary networks", 2024 (arXiv 2402.17318), of which `aux="augmented"` is the choice
    of layers; there the copies get channels that fit, and fewer of them stand behind later blocks.

    Attributes:
        aux: Makes the network of one block, without its last linear layer; a module-level
            function, so that the model pickles. It is called with torch's generator seeded. None:
            the network above. "momentum": the same behind an average of the next block.
            "augmented": copies of later layers.
        layers: Linear layers of the network above; copies of "augmented".
        units: Their width at most; None: the width of what they read.
        decay: Share of the average that stays at a step, for "momentum".
    """

    aux: AuxiliaryMaker | str | None = None
    layers: int = 2
    units: int | None = None
    decay: float = 0.995

    name: ClassVar[str] = "dgl"
    source: ClassVar[str] = "Belilovsky, Eickenberg, Oyallon 2020"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback"})
    cuts: ClassVar[bool] = True
    local: ClassVar[bool] = True
    needs_example: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not (self.aux in (None, "momentum", "augmented") or callable(self.aux)):
            raise ValueError(
                f"aux: expected 'momentum', 'augmented', a callable or None, got {self.aux!r}"
            )
        check_fraction("decay", self.decay)
        check_width("layers", self.layers)
        check_width("units", 1 if self.units is None else self.units)
        if self.aux == "momentum":
            # Instances of a class whose other forms are strictly local.
            object.__setattr__(self, "reads", self.reads | {"next"})

    def describe(self) -> dict[str, object]:
        """Return the rule's name, family and options as plain data."""
        made_by = getattr(self.aux, "__qualname__", self.aux)
        return {**super().describe(), "aux": made_by}

    def feature_spec(self, feature: Tensor) -> FeatureSpec:
        """Return how features of this shape are read: whole."""
        return flat_spec(feature)

    def make_message(self, num_classes: int, seed: int, device: torch.device | None) -> Message:
        """Return the auxiliary network of one block, still without layers."""
        if self.aux == "momentum":
            from bll.rules.momentum import MomentumAuxiliary

            return MomentumAuxiliary(num_classes, self._published, self.decay, seed)
        if self.aux == "augmented":
            from bll.rules.augmented import AugmentedAuxiliary

            return AugmentedAuxiliary(num_classes, self.layers, seed)
        make = self._published if self.aux is None else cast(AuxiliaryMaker, self.aux)
        return Auxiliary(num_classes, make, seed)

    def _published(self, feature: FeatureSpec) -> nn.Module:
        return published_auxiliary(feature, self.layers, self.units)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the cross-entropy of the auxiliary network, 0-dim."""
        if not isinstance(message, Auxiliary):
            raise TypeError(f"message: expected an Auxiliary, got {type(message).__name__}")
        message.advance()
        rows, head = message(feature), message.head
        weight, bias = cast(Tensor, head.weight), cast(Tensor, head.bias)
        return bll_kernels.linear_cross_entropy(rows, weight, labels, bias=bias)


class Auxiliary(Message):
    """The auxiliary network of one block, made once the feature is known.

    Args:
        num_classes: Number of classes.
        make: Makes the network without its last linear layer.
        seed: Seed of torch's generator while the network is made; its state is put back.
    """

    head: nn.Module

    def __init__(self, num_classes: int, make: AuxiliaryMaker, seed: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.make = make
        self.seed = seed

    @property
    def ready(self) -> bool:
        """Whether the network is made."""
        return "head" in self._modules

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the last linear layer's weight."""
        return tuple(cast(Tensor, self.head.weight).shape)

    def forward(self, feature: Tensor) -> Tensor:
        """Map a feature to the rows [B, D'] that the last linear layer reads."""
        rows: Tensor = self.network(feature)
        return rows

    def advance(self) -> None:
        """Be told of a loss to come; a network that is only trained has no use for it."""

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Make the network; see `Message.materialize`.

        Raises:
            ValueError: The network does not give rows [B, D'].
        """
        with torch.inference_mode(False), seeded(self.seed):
            network = self.make(feature).to(device=device, dtype=feature.dtype)
            probe = torch.zeros(2, *feature.sample_shape, dtype=feature.dtype, device=device)
            network.eval()
            with torch.no_grad():
                rows = network(probe)
            network.train()
            if rows.dim() != 2 or len(rows) != 2:
                raise ValueError(
                    f"aux: expected a network from {list(probe.shape)} to rows [2, D], got "
                    f"{list(rows.shape)}"
                )
            head = nn.Linear(rows.shape[1], self.num_classes)
            self.network = network
            self.head = head.to(device=device, dtype=feature.dtype)


def published_auxiliary(feature: FeatureSpec, layers: int, units: int | None) -> nn.Module:
    """The auxiliary network of Belilovsky et al. for a map, its linear layers for a vector."""
    parts: list[nn.Module] = []
    inputs = feature.sample_shape[-1]
    if len(feature.sample_shape) == 3:
        channels, height, width = feature.sample_shape
        parts.append(nn.AdaptiveAvgPool2d((-(-height // 2), -(-width // 2))))
        for _ in range(3):
            parts += [nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]
            parts.append(nn.ReLU())
        parts += [nn.AdaptiveAvgPool2d(2), nn.Flatten()]
        inputs = 4 * channels
    hidden = inputs if units is None else min(units, inputs)
    for _ in range(layers):
        parts += [nn.Linear(inputs, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()]
        inputs = hidden
    return nn.Sequential(*parts)
