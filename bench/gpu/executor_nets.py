"""The networks of the executor's stage: two bound by launches, one that fills a GPU."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from bll.models import build_network

CLASSES: Final = 10


@dataclass(frozen=True)
class Net:
    """A network.

    Attributes:
        build: Makes it on the CPU; also the names to cut after.
        shape: Of one sample.
        dtype: Of parameters and samples.
        channels_last: Layout of samples.
    """

    build: Callable[[], tuple[nn.Module, list[str]]]
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    channels_last: bool = False

    def batch(self, size: int, device: str) -> tuple[Tensor, Tensor]:
        """Random samples and labels."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(size, *self.shape, generator=generator).to(device, self.dtype)
        if self.channels_last:
            x = x.to(memory_format=torch.channels_last)
        return x, torch.randint(CLASSES, (size,), generator=generator).to(device)


def _mlp(width: int, depth: int = 4) -> tuple[nn.Module, list[str]]:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 784
    for number in range(1, depth + 1):
        layers[f"layer{number}"] = nn.Sequential(nn.Linear(inputs, width), nn.ReLU())
        inputs = width
    layers["head"] = nn.Linear(width, CLASSES)
    return nn.Sequential(layers), [f"layer{number}" for number in range(1, depth)]


class _Pooled(nn.Module):
    """Mean over the positions of [batch, positions, width], then logits."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.logits = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(x.mean(1))


def _transformer(width: int = 64, depth: int = 20) -> tuple[nn.Module, list[str]]:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        (
            f"layer{number}",
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True),
        )
        for number in range(1, depth + 1)
    )
    layers["head"] = _Pooled(width)
    return nn.Sequential(layers), [f"layer{number}" for number in range(1, depth)]


def _resnet18() -> tuple[nn.Module, list[str]]:
    network = build_network("resnet18", (3, 32, 32), CLASSES, blocks=4)
    model = network.model.to(torch.bfloat16)
    return model.to(memory_format=torch.channels_last), list(network.cuts)  # type: ignore[call-overload]


NETS: Final = {
    "tiny": Net(lambda: _mlp(8), (784,)),
    "mlp": Net(lambda: _mlp(1024), (784,)),
    "transformer": Net(_transformer, (10, 64)),
    "resnet18": Net(_resnet18, (3, 32, 32), torch.bfloat16, channels_last=True),
}
