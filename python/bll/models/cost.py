"""What the parts of a network cost, counted without computing."""

from __future__ import annotations

import copy

import torch
from torch import nn


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds of every convolution and linear layer for one image, by module name.

    Nothing is computed: shapes are found on the meta device, on a copy of ``model``.
    """
    counts: dict[str, int] = {}
    shadow = copy.deepcopy(model).to("meta").eval()
    handles = []
    for name, module in shadow.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def count(
            layer: nn.Module, _: tuple[torch.Tensor, ...], out: torch.Tensor, name: str = name
        ) -> None:
            # Every position of a channel uses all weights of that channel once; no bias counted.
            weights = sum(p.numel() for p in layer.parameters() if p.ndim > 1)
            counts[name] = out[0, 0].numel() * weights

        handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        shadow(torch.empty(1, *image_shape, device="meta"))
    return counts
