"""The step of one block's optimiser, host work included, against torch.optim's fused forms."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from measure import Goal, Record
from torch import nn

from bll_kernels.optim import BlockAdam, BlockSGD

OURS = {
    "Adam": lambda p: BlockAdam(p, lr=1e-3),
    "SGD": lambda p: BlockSGD(p, lr=1e-3, momentum=0.9),
}
THEIRS = {
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-3, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9, fused=True),
}


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("width", [64, 256])
def test_block_step(report: Callable[..., Record], name: str, width: int) -> None:
    """A block of a linear layer and BatchNorm: host work is most of the step."""
    steps = []
    for make in (OURS[name], THEIRS[name]):
        block = nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width))
        for p in block.parameters():
            p.grad = torch.randn_like(p)
        optimizer = make(block.parameters())
        alone = getattr(optimizer, "step_block", None)
        steps.append(partial(alone, 0) if alone else optimizer.step)
    goals = [Goal("torch.optim fused", 3.0 if width == 64 else 1.0)]
    report(
        f"optimiser step {name}, {width} x {width}",
        steps[0],
        {"torch.optim fused": steps[1]},
        goals,
    )
