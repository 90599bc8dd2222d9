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
        place = {id(parameter): at for at, parameter in enumerate(parameters)}
        self.optimizer = optimizer
        self.parameters = list(parameters)
        #: By group, where its parameters stand among those of the block.
        self.groups: dict[int, list[int]] = {}
        for index, group in enumerate(optimizer.param_groups):
            places = [place[id(p)] for p in group["params"] if id(p) in place]
            if places and len(places) < len(group["params"]):
                raise ValueError(
                    f"optimizer: expected groups of one block each, got group {index} with "
                    f"{len(group['params']) - len(places)} parameters of others"
                )
            if places:
                self.groups[index] = places

    def shares(self) -> list[tuple[BlockOptimizer, int, list[int]]]:
        """The groups, and where their parameters stand among those of the block."""
        return [(self.optimizer, index, places) for index, places in self.groups.items()]

    def step(self) -> None:
        """Update the block."""
        for index in self.groups:
            self.optimizer.step_block(index)

    def step_with(self, gradients: Sequence[Tensor | None]) -> None:
        """Update the block from gradients in the order of `parameters`."""
        for index, places in self.groups.items():
            self.optimizer.step_with([gradients[at] for at in places], index)

    def step_checked(self, gradients: Sequence[Tensor | None]) -> None:
        """As `step_with`, for gradients like ones that it has taken before."""
        for index, places in self.groups.items():
            self.optimizer.step_checked([gradients[at] for at in places], index)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the block's gradients, or zero them in place."""
        for parameter in self.parameters:
            if set_to_none or parameter.grad is None:
                parameter.grad = None
            else:
                parameter.grad.zero_()
