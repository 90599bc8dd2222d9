"""Steps of small blocks, where the host decides: without autograd, by plain loops, end to end."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import Goal, Record
from torch import Tensor, nn

import bll
from bll_kernels.optim import BlockAdam

CLASSES, DEPTH, BATCHES = 10, 4, 50
Step = Callable[[], None]


def blocks(width: int) -> list[nn.Sequential]:
    """Four blocks of linear, batch norm and ReLU; the last has the read-out."""
    torch.manual_seed(0)
    found = [
        nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())
        for _ in range(DEPTH)
    ]
    found[-1].append(nn.Linear(width, CLASSES))
    return found


def executor_step(width: int, batches: list[tuple[Tensor, Tensor]], local_step: str) -> Step:
    """The executor, one block at a time."""
    cuts = [str(index) for index in range(DEPTH - 1)]
    model = bll.wrap(
        nn.Sequential(*blocks(width)), blocks=cuts, num_classes=CLASSES, example=batches[0][0]
    )
    run = bll.executor(model, lambda p: BlockAdam(p, lr=1e-3), local_step=local_step)
    for _ in range(4):
        # Programs are made at the first batches, and compiled.
        run.run(batches)
    feed = itertools.cycle(batches)
    return lambda: run.step(*next(feed)) and None


def local_loop(width: int, batches: list[tuple[Tensor, Tensor]]) -> Step:
    """What one writes by hand: a linear head, a backward and a fused Adam per block."""
    bodies = blocks(width)
    heads = [nn.Linear(width, CLASSES) for _ in bodies[:-1]] + [nn.Identity()]
    optimizers = [
        torch.optim.Adam([*body.parameters(), *head.parameters()], lr=1e-3, fused=True)
        for body, head in zip(bodies, heads, strict=True)
    ]
    feed = itertools.cycle(batches)

    def step() -> None:
        feature, labels = next(feed)
        for body, head, optimizer in zip(bodies, heads, optimizers, strict=True):
            feature = body(feature.detach())
            F.cross_entropy(head(feature), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return step


def backprop(width: int, batches: list[tuple[Tensor, Tensor]]) -> Step:
    """The same network end to end, one fused Adam."""
    model = nn.Sequential(*blocks(width))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    feed = itertools.cycle(batches)

    def step() -> None:
        x, labels = next(feed)
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.mark.parametrize("way", ["traced", "compiled"])
@pytest.mark.parametrize(("width", "batch"), [(64, 32), (256, 128)])
def test_small_steps(
    report: Callable[..., Record], quick: bool, width: int, batch: int, way: str
) -> None:
    """Five times a local loop by hand, twice backprop; other ways to run the step beside it."""
    if quick and way == "compiled":
        pytest.skip("quick: without compiled steps")
    torch.manual_seed(1)
    batches = [
        (torch.randn(batch, width), torch.randint(CLASSES, (batch,)))
        for _ in range(2 if quick else BATCHES)
    ]
    others = ["autograd"] if way == "traced" else ["autograd", "traced"]
    peers = {
        "local loop by hand": local_loop(width, batches),
        "backprop": backprop(width, batches),
        **{
            f"executor, local_step {other}": executor_step(width, batches, other)
            for other in others
        },
    }
    report(
        f"executor step, MLP of {DEPTH} blocks, width {width}, batch {batch}, {way}",
        executor_step(width, batches, way),
        peers,
        [Goal("local loop by hand", 5.0), Goal("backprop", 2.0)] if width == 64 else [],
    )
