"""Small blocks with a local loss, and data for them, for the executor's tests."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

import bll_kernels as bk
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import Executor

CLASSES = 5


class LocalBlock:
    """A module with a table of class messages; the last block reads its logits."""

    def __init__(self, name: str, body: nn.Module, width: int, *, last: bool = False) -> None:
        self.name, self.body, self.last = name, body, last
        self.reads = frozenset({"output", "label"})
        self.table = nn.Parameter(torch.randn(CLASSES, width) / width**0.5)
        self.fault: tuple[str, int] | None = None
        self.calls = {"forward": 0, "loss": 0}

    def parameters(self) -> Sequence[Tensor]:
        return [*self.body.parameters(), *([] if self.last else [self.table])]

    def _count(self, kind: str) -> None:
        self.calls[kind] += 1
        if self.fault == (kind, self.calls[kind]):
            raise ZeroDivisionError(f"planted in {kind}")

    def forward(self, x: Tensor) -> Tensor:
        self._count("forward")
        return self.body(x)

    def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._count("loss")
        if self.last:
            leaf = output.detach().requires_grad_()
            value = nn.functional.cross_entropy(leaf, labels)
            return value, torch.autograd.grad(value, leaf)[0]
        value, (da, dtable) = bk.class_evidence_loss_value_and_grad(
            output, self.table.detach(), labels, "gaussian", wrt=("a", "table")
        )
        self.table.grad = dtable if self.table.grad is None else self.table.grad + dtable
        return value, da


def network(seed: int, blocks: int, width: int, dropout: float = 0.2) -> list[LocalBlock]:
    torch.manual_seed(seed)
    found = []
    for index in range(blocks):
        last = index == blocks - 1
        body = nn.Sequential(nn.Linear(width, CLASSES if last else width))
        if not last:
            body.extend([nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(dropout)])
        found.append(LocalBlock(f"b{index}", body, width, last=last))
    return found


def data(seed: int, batch: int, width: int, count: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(batch, width, generator=generator),
            torch.randint(CLASSES, (batch,), generator=generator),
        )
        for _ in range(count)
    ]


def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return BlockAdam(parameters, lr=0.01)


def everything(executor: Executor) -> list[Tensor]:
    """Parameters, buffers and optimiser states."""
    found: list[Tensor] = []
    for block, optimizer in zip(executor.blocks, executor.optimizers, strict=True):
        assert isinstance(block, LocalBlock)
        found += [p.detach() for p in block.parameters()] + list(block.body.buffers())
        for state in optimizer.state.values():
            found += [value for value in state.values() if isinstance(value, Tensor)]
    return found
