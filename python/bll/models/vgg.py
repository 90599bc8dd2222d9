"""VGG8b, the small VGG of local learning: six 3x3 convolutions and two linear layers.

Nokland, Eidnes, "Training neural networks with local error signals", 2019 (arXiv 1901.06656).
"""

from __future__ import annotations

from torch import nn

# Channels in units of the first convolution's, and whether a pooling by 2 follows.
_CONVOLUTIONS = ((1, False), (2, True), (2, False), (4, True), (4, True), (4, True))
_HIDDEN = 8


class Vgg8b(nn.Sequential):
    """Seven layers with batch norm and ReLU, named ``conv1`` to ``conv6`` and ``hidden``; ``head``.

    With the default width the channels are 128, 256, pool, 256, 512, pool, 512, pool, 512, pool,
    and the hidden layer has 1024 units. A map that a pooling would leave without pixels is not
    pooled, so images smaller than 16 x 16 work too. Without the paper's dropout.

    Args:
        image_shape: Channels, height and width of an image.
        num_classes: Number of logits.
        width: Channels of the first convolution.
    """

    def __init__(
        self, image_shape: tuple[int, int, int], num_classes: int, width: int = 128
    ) -> None:
        super().__init__()
        inputs, height, length = image_shape
        for number, (factor, pools) in enumerate(_CONVOLUTIONS, start=1):
            outputs = factor * width
            layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1, bias=False),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            )
            if pools and min(height, length) >= 2:
                layer.append(nn.MaxPool2d(2))
                height, length = height // 2, length // 2
            self.add_module(f"conv{number}", layer)
            inputs = outputs
        units = _HIDDEN * width
        self.hidden = nn.Sequential(
            nn.Flatten(),
            nn.Linear(inputs * height * length, units, bias=False),
            nn.BatchNorm1d(units),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(units, num_classes)
