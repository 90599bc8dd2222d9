"""Standardised channels of the reference backend."""

from __future__ import annotations

import torch
from torch import Tensor

_OVER = (0, 2)


def standardize_channels(x: Tensor, channels: int, eps: float) -> tuple[Tensor, Tensor]:
    """Rows [B, channels * cells] with every channel at mean 0 and variance 1, and its factor."""
    if not x.numel():
        return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_zeros((channels,))
    cells = x.reshape(x.shape[0], channels, -1)
    centred = cells - cells.mean(_OVER, keepdim=True)
    scale = (centred.square().mean(_OVER) + eps).rsqrt()
    return (centred * scale[:, None]).reshape(x.shape), scale


def standardize_channels_backward(grad: Tensor, standardized: Tensor, scale: Tensor) -> Tensor:
    """scale (g - mean(g) - z mean(g z)), z the standardised rows, means over a channel."""
    if not grad.numel():
        return torch.empty_like(standardized)
    shape = (grad.shape[0], scale.shape[0], -1)
    g, z = grad.reshape(shape), standardized.reshape(shape)
    along = (g * z).mean(_OVER, keepdim=True)
    left = g - g.mean(_OVER, keepdim=True) - z * along
    return (left * scale[:, None]).reshape(grad.shape)
