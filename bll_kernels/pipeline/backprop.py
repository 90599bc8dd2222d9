"""End-to-end backpropagation through the same blocks, for comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.events import Recorder
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.step import Updater


class Backprop:
    """Trains blocks from the last block's loss alone: forward, backward and update in turn.

    The graph is cut at the borders and gradients are handed from block to block, which is the same
    arithmetic as one backward through the whole network and lets every block be timed.

    Args:
        blocks: The blocks in order; the local losses of all but the last are not used.
        optimizer_factory: Makes the optimiser of one block from its parameters.
    """

    def __init__(
        self, blocks: Sequence[Block], optimizer_factory: Callable[[Sequence[Tensor]], Updater]
    ) -> None:
        self.blocks = list(blocks)
        self.optimizers = [optimizer_factory(block.parameters()) for block in blocks]
        self.recorder: Recorder | None = None
        self.steps_done = 0

    def _operation(self, index: int, kind: Kind) -> Any:
        if self.recorder is None:
            return nullcontext()
        return self.recorder.operation(index, self.blocks[index].name, self.steps_done, kind)

    def step(self, x: Tensor, labels: Tensor) -> Tensor:
        """One batch.

        Args:
            x: [batch, ...], the first block's input.
            labels: [batch, ...].

        Returns:
            The last block's loss, 0-dim and detached.
        """
        inputs, outputs = [], []
        for index, block in enumerate(self.blocks):
            with self._operation(index, Kind.FORWARD), torch.enable_grad():
                # The first block needs no gradient at its input.
                leaf = x.detach().requires_grad_(index > 0)
                output = block.forward(leaf)
            inputs.append(leaf)
            outputs.append(output)
            x = output
        last = len(self.blocks) - 1
        with self._operation(last, Kind.LOSS):
            loss, gradient = self.blocks[last].loss_and_grad(x.detach(), labels)
        for index in range(last, -1, -1):
            with self._operation(index, Kind.BACKWARD):
                outputs.pop().backward(gradient)
            if index > 0:
                found = inputs.pop().grad
                if found is None:
                    name = self.blocks[index].name
                    raise RuntimeError(f"block {name!r} gives no gradient at its input")
                gradient = found
        for index, optimizer in enumerate(self.optimizers):
            with self._operation(index, Kind.UPDATE):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        self.steps_done += 1
        return loss.detach()
