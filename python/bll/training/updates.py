"""One optimiser for the whole network, stepped a block at a time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bll.training.optimizers import BlockOptimizer


class GroupUpdates:
    """The groups of an optimiser that hold the parameters of one block.

    Args:
        optimizer: Over `bll.param_groups`.
        parameters: Of the block, its message included.
    """

    def __init__(self, optimizer: BlockOptimizer, parameters: Sequence[Tensor]) -> None:
        own = {id(parameter) for parameter in parameters}
        self.optimizer = optimizer
        self.parameters = list(parameters)
        self.groups = [
            index
            for index, group in enumerate(optimizer.param_groups)
            if any(id(parameter) in own for parameter in group["params"])
        ]

    def step(self) -> None:
        """Update the block."""
        for index in self.groups:
            self.optimizer.step_block(index)

    #: What an executor's traced steps call; there is nothing around `step` to leave out.
    step_blocks = step

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the block's gradients, or zero them in place."""
        for parameter in self.parameters:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()
