"""Wrapped networks of several kinds, and batches for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

import bll
from bll_kernels.optim import BlockAdam


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU()),
        nn.Sequential(nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.Dropout(0.3)),
        nn.Sequential(nn.Linear(16, 16, bias=False), nn.SiLU(), nn.Linear(16, 12), nn.Tanh()),
        nn.Linear(12, 5),
    )


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, stride=2, bias=False), nn.ELU()),
        nn.Sequential(nn.Dropout2d(0.2), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)),
    )


class Attention(nn.Module):
    """A transformer layer that returns a tensor, as an nn.Sequential needs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 24, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def transformer() -> nn.Sequential:
    return nn.Sequential(Attention(), Attention(), nn.Sequential(nn.Flatten(), nn.Linear(48, 5)))


NETS: dict[str, tuple[Callable[[], nn.Sequential], tuple[int, ...]]] = {
    "mlp": (mlp, (12,)),
    "convolutional": (convolutional, (3, 9, 9)),
    "transformer": (transformer, (3, 16)),
}


def wrapped(name: str, dtype: torch.dtype, rule: str | bll.Rule = "bll") -> nn.Module:
    torch.manual_seed(4)
    build, shape = NETS[name]
    net = build().to(dtype)
    cuts = [key for key, _ in net.named_children()][:-1]
    example = torch.randn(2, *shape, dtype=dtype)
    return bll.wrap(net, blocks=cuts, rule=rule, num_classes=5, example=example)


def batches(name: str, dtype: torch.dtype, count: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    shape = NETS[name][1]
    return [
        (
            torch.randn(8, *shape, dtype=dtype, generator=generator),
            torch.randint(5, (8,), generator=generator),
        )
        for _ in range(count)
    ]


def adam(parameters: Sequence[Tensor]) -> BlockAdam:
    return BlockAdam(parameters, lr=0.01)
