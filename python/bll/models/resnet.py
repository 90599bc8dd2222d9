"""Residual networks for small images: 3x3 stem, no max-pool, four stages.

He et al., "Deep Residual Learning for Image Recognition", 2016; the stems are those usual for
28x28 and 32x32 images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn


def _convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, then batch norm."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(outputs),
    )


class ResidualUnit(nn.Module):
    """``relu(body(x) + shortcut(x))``; the shortcut is a 1x1 convolution where shapes differ.

    Args:
        inputs: Channels of the input.
        outputs: Channels of the output.
        stride: Stride of the unit.
        bottleneck: Use 1x1, 3x3, 1x1 convolutions with ``outputs / 4`` inner channels instead of
            two 3x3 convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        if bottleneck:
            inner = outputs // 4
            self.body = nn.Sequential(
                _convolution(inputs, inner, 1),
                nn.ReLU(inplace=True),
                _convolution(inner, inner, 3, stride),
                nn.ReLU(inplace=True),
                _convolution(inner, outputs, 1),
            )
        else:
            self.body = nn.Sequential(
                _convolution(inputs, outputs, 3, stride),
                nn.ReLU(inplace=True),
                _convolution(outputs, outputs, 3),
            )
        same_shape = stride == 1 and inputs == outputs
        self.shortcut: nn.Module = (
            nn.Identity() if same_shape else _convolution(inputs, outputs, 1, stride)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map ``[B, inputs, H, W]`` to ``[B, outputs, H / stride, W / stride]``."""
        return torch.relu(self.body(x) + self.shortcut(x))


@dataclass(frozen=True)
class ResNetShape:
    """What distinguishes the residual networks.

    Attributes:
        units: Residual units of each stage.
        width: Default channels of the first stage's 3x3 convolutions; each stage doubles them.
        bottleneck: Whether the units are bottlenecks (four times as many output channels).
        stem_stride: Stride of the stem.
    """

    units: tuple[int, int, int, int]
    width: int
    bottleneck: bool
    stem_stride: int


RESNETS: dict[str, ResNetShape] = {
    "resnet10": ResNetShape((1, 1, 1, 1), width=16, bottleneck=False, stem_stride=2),
    "resnet18": ResNetShape((2, 2, 2, 2), width=64, bottleneck=False, stem_stride=1),
    "resnet50": ResNetShape((3, 4, 6, 3), width=64, bottleneck=True, stem_stride=1),
}


class ResNet(nn.Sequential):
    """Stem, four stages, global average pooling and a linear read-out.

    Args:
        shape: Depth, widths and stem.
        channels: Channels of an image.
        num_classes: Number of logits.
        width: Channels of the first stage.
    """

    def __init__(self, shape: ResNetShape, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            *_convolution(channels, width, 3, shape.stem_stride), nn.ReLU(inplace=True)
        )
        expansion = 4 if shape.bottleneck else 1
        stages: list[nn.Sequential] = []
        inputs = width
        for number, units in enumerate(shape.units):
            outputs = width * 2**number * expansion
            stage = nn.Sequential()
            for unit in range(units):
                stride = 2 if number > 0 and unit == 0 else 1
                stage.append(ResidualUnit(inputs, outputs, stride, shape.bottleneck))
                inputs = outputs
            stages.append(stage)
        self.stage1, self.stage2, self.stage3, self.stage4 = stages
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.head = nn.Linear(inputs, num_classes)
