"""The multi-layer perceptron of the CPU experiments: two linear layers per block."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from bll.models.network import Network


def _hidden(inputs: int, outputs: int) -> list[nn.Module]:
    # The normalisation that follows has its own shift, so the linear layer needs no bias.
    return [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]


def mlp(
    image_shape: tuple[int, int, int], num_classes: int, *, blocks: int, width: int = 256
) -> Network:
    """Multi-layer perceptron with ``2 * blocks`` linear layers.

    Every block is linear, batch norm, ReLU, linear, batch norm, ReLU; in the last block the
    second linear layer gives the logits.

    Args:
        image_shape: Channels, height and width of an image.
        num_classes: Number of logits.
        blocks: Number of blocks, at least 1.
        width: Units of a hidden layer.

    Raises:
        ValueError: ``blocks`` or ``width`` is below 1.
    """
    for name, value in (("blocks", blocks), ("width", width)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    children: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = math.prod(image_shape)
    for number in range(1, blocks + 1):
        layers: list[nn.Module] = [nn.Flatten()] if number == 1 else []
        layers += _hidden(inputs, width)
        layers += [nn.Linear(width, num_classes)] if number == blocks else _hidden(width, width)
        children[f"block{number}"] = nn.Sequential(*layers)
        inputs = width
    return Network(nn.Sequential(children), tuple(children)[:-1])
