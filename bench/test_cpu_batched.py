"""Equal blocks as one batched step, against the same blocks one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from measure import Record
from torch import Tensor, nn

import bll
from bll.models.transformer import TransformerLayer
from bll_kernels.optim import BlockAdam

CLASSES, WIDTH = 10, 64
#: Batches of a run: a pipeline of K blocks is full in all but K - 1 ticks at either end.
BATCHES = 60
#: Rows from which on the compiled step, which takes minutes to make, is no peer.
LARGE = 100
Run = Callable[[], object]


def mlp_layer() -> nn.Module:
    """One block of the network of `test_cpu_executor.py`."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())


def transformer_layer() -> nn.Module:
    """One layer of `bll.models.reversal_encoder`."""
    return TransformerLayer(WIDTH, heads=1, hidden=256, causal=False)


CASES: dict[str, tuple[Callable[[], nn.Module], int, int, tuple[int, ...]]] = {
    "8 MLP layers of width 64, batch 32": (mlp_layer, 8, 32, (WIDTH,)),
    "8 MLP layers of width 64, batch 4": (mlp_layer, 8, 4, (WIDTH,)),
    "20 transformer layers of width 64, 10 positions, batch 2": (
        transformer_layer, 20, 2, (10, WIDTH),
    ),
    "20 transformer layers of width 64, 10 positions, batch 32": (
        transformer_layer, 20, 32, (10, WIDTH),
    ),
}  # fmt: skip


def training(
    layer: Callable[[], nn.Module], count: int, batches: list[tuple[Tensor, Tensor]], **how: object
) -> Run:
    """A run of all batches under the executor, its programs made."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.LazyLinear(CLASSES))
    net = nn.Sequential(*[layer() for _ in range(count)], head)
    net(batches[0][0])
    model = bll.wrap(
        net, blocks=[str(at) for at in range(count)], num_classes=CLASSES, example=batches[0][0]
    )
    run = bll.executor(model, partial(BlockAdam, lr=1e-3), **how)
    run.run(batches)
    return lambda: run.run(batches)


@pytest.mark.parametrize("case", list(CASES))
def test_equal_blocks(report: Callable[..., Record], quick: bool, case: str) -> None:
    """No goal: opt-in, and the figures say where it pays."""
    layer, count, size, shape = CASES[case]
    count = 2 if quick else count
    torch.manual_seed(1)
    batches = [
        (torch.randn(size, *shape), torch.randint(CLASSES, (size,)))
        for _ in range(2 if quick else BATCHES)
    ]
    batched = {"mode": "pipelined", "batched_blocks": True}
    peers = {"one block at a time": training(layer, count, batches, local_step="traced")}
    if not quick and size * math.prod(shape[:-1]) < LARGE:
        peers["batched, compiled"] = training(
            layer, count, batches, local_step="compiled", **batched
        )
    report(
        f"executor step, {case}, {len(batches)} batches in a row, batched blocks",
        training(layer, count, batches, **batched),
        peers,
        [],
    )
