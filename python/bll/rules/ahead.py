"""Copies of later blocks' modules inside auxiliary networks, and what joins them to a feature."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from bll.features import FeatureSpec, select_feature

Shape = tuple[int, ...]


class Ahead(nn.Module):
    """A copy of a later block's first module, without hooks, on features.

    Args:
        module: The module to copy.
        feature: What it is to take.
        device: Where to put the copy.
        use: What needs it, for errors.

    Attributes:
        shape: Shape of one sample behind it: [D], or [C, H, W].

    Raises:
        ValueError: It does not take such a feature alone, or gives no rows or maps.
    """

    def __init__(
        self, module: nn.Module, feature: FeatureSpec, device: torch.device | None, use: str
    ) -> None:
        super().__init__()
        with torch.inference_mode(False):
            copied = copy.deepcopy(module).to(device=device, dtype=feature.dtype)
        for part in copied.modules():
            for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
                hooks.clear()
        self.module = copied.train(module.training)
        self._writes = False
        self.shape = self._probe(feature, device, use)

    def forward(self, feature: Tensor) -> Tensor:
        """Return rows [B, D] or maps [B, C, H, W]; the feature stays as it is."""
        return select_feature(self.module(feature.clone() if self._writes else feature))

    def _probe(self, feature: FeatureSpec, device: torch.device | None, use: str) -> Shape:
        probe = torch.zeros(2, *feature.sample_shape, dtype=feature.dtype, device=device)
        name = type(self.module).__name__
        was_training = self.module.training
        self.module.eval()
        try:
            with torch.inference_mode(False), torch.no_grad():
                before = probe._version
                shape = tuple(select_feature(self.module(probe)).shape)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"aux: {use!r} needs later blocks whose first module takes the feature "
                f"{list(probe.shape)} alone; {name} does not: {reason}"
            ) from error
        finally:
            self.module.train(was_training)
        self._writes = probe._version != before
        if len(shape) not in (2, 4) or shape[0] != 2:
            raise ValueError(
                f"aux: {use!r} needs rows [2, D] or maps [2, C, H, W] behind the first module of "
                f"later blocks; {name} gives {list(shape)}"
            )
        return shape[1:]


def linear_map(inputs: Shape, outputs: Shape, use: str) -> nn.Module:
    """A linear map from samples of one shape to samples of another; maps are pooled to size.

    Raises:
        ValueError: From a vector to a map.
    """
    if len(inputs) == 3 and len(outputs) == 3:
        mixed = nn.Conv2d(inputs[0], outputs[0], 1, bias=False)
        return nn.Sequential(nn.AdaptiveAvgPool2d(outputs[1:]), mixed)
    if len(outputs) == 3:
        raise ValueError(f"aux: {use!r} cannot turn the vector of a block into maps")
    mixed_rows = nn.Linear(inputs[0], outputs[0], bias=False)
    if len(inputs) == 3:
        return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), mixed_rows)
    return mixed_rows


def samples_of(feature: FeatureSpec, shape: Shape) -> FeatureSpec:
    """How samples of this shape are read, whole."""
    return replace(feature, shape=shape, pool=None, width=math.prod(shape), channels_last=False)
