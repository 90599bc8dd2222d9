"""Captured steps with dropout: on the device the numbers of one block at a time, to the bit."""

from __future__ import annotations

import pytest
import torch
from device import require_device
from tolerance import assert_same_bits
from torch import nn

import bll
from bll_kernels.optim import BlockAdam

require_device()
pytest_plugins = ["device"]
WIDTH, CLASSES, STEPS = 64, 10, 12


def wrapped() -> nn.Module:
    torch.manual_seed(5)
    layers = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU(), nn.Dropout(0.3))
        for _ in range(3)
    ]
    model = nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES)).cuda()
    example = torch.randn(2, WIDTH, device="cuda")
    return bll.wrap(model, blocks=["0", "1", "2"], num_classes=CLASSES, example=example)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_graphs_draw_what_sequential_draws(gpu: str, micro_batches: int) -> None:
    generator = torch.Generator().manual_seed(1)
    feed = [
        (
            torch.randn(32, WIDTH, generator=generator).cuda(),
            torch.randint(CLASSES, (32,), generator=generator).cuda(),
        )
        for _ in range(STEPS)
    ]
    models = [wrapped() for _ in range(3)]
    runs = [
        bll.executor(model, BlockAdam, mode=mode, micro_batches=micro_batches, seed=9)
        for model, mode in zip(models, ("sequential", "pipelined", "graphed"), strict=True)
    ]
    torch.cuda.manual_seed(3)
    for x, labels in feed:
        results = [run.step(x, labels) for run in runs]
        for result in results[1:]:
            assert_same_bits(result.output, results[0].output)
    assert runs[2].draws == [True, True, True, False]
    # The caller's own numbers go on undisturbed.
    drawn = torch.rand(4, device="cuda")
    torch.cuda.manual_seed(3)
    assert_same_bits(drawn, torch.rand(4, device="cuda"))
