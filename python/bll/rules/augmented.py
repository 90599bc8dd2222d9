"""An auxiliary network of layers like those of later blocks: `dgl`, `aux="augmented"`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from bll.features import FeatureSpec
from bll.feedback import Later
from bll.rules.ahead import Ahead, linear_map, samples_of
from bll.rules.dgl import Auxiliary


class AugmentedAuxiliary(Auxiliary):
    """Auxiliary network whose layers are fresh copies of later blocks' first modules.

    The blocks are taken at equal distances up to the last; a last block of one module, the output
    layer, does not count. A copy is drawn anew where its layers can be (`reset_parameters`). A
    linear map (1x1 convolution behind pooling) stands between layers whose shapes do not fit; maps
    are averaged over space in the end. Nothing of the later blocks is read afterwards.

    Args:
        num_classes: Number of classes.
        layers: Copies at most.
        seed: As in `Auxiliary`.
    """

    def __init__(self, num_classes: int, layers: int, seed: int) -> None:
        super().__init__(num_classes, self._build, seed)
        self.layers = layers
        # In a tuple, so that later blocks' modules are not registered under this one as well.
        self._later: tuple[Later, ...] = ()
        self._device: torch.device | None = None

    def watch(self, later: Sequence[Later]) -> None:
        """Take the first modules of the later blocks, and what they get."""
        inner = [each for each in later[:-1] if each.modules]
        if len(later[-1].modules) > 1:
            inner.append(later[-1])
        self._later = tuple(inner)

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Make the network; see `Message.materialize`.

        Raises:
            ValueError: A later block's first module does not take the feature before it alone.
        """
        self._device = device
        super().materialize(feature, device=device)
        # What was watched has served.
        self._later = ()

    def _build(self, feature: FeatureSpec) -> nn.Module:
        count = min(self.layers, len(self._later))
        chosen = [self._later[(i + 1) * len(self._later) // count - 1] for i in range(count)]
        shape = feature.sample_shape
        parts: list[nn.Module] = []
        for later in chosen:
            wanted = later.feature.sample_shape
            if shape != wanted:
                joined = linear_map(shape, wanted, "augmented")
                parts.append(joined.to(device=self._device, dtype=feature.dtype))
            copied = Ahead(later.modules[0], samples_of(feature, wanted), self._device, "augmented")
            _draw_anew(copied)
            parts.append(copied)
            shape = copied.shape
        if len(shape) == 3:
            parts += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*parts)


def _draw_anew(module: nn.Module) -> None:
    for part in module.modules():
        draw = getattr(part, "reset_parameters", None)
        if callable(draw):
            draw()
    for parameter in module.parameters():
        parameter.requires_grad_()
