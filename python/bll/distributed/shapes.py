"""Shapes between blocks, found without running one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bll.executor import WrappedBlock


class Chain(nn.Module):
    """Modules that run one after the other, as one module."""

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Tensor) -> Tensor:
        """Run them in order."""
        for part in self.parts:
            x = part(x)
        return x


def borders(blocks: Sequence[WrappedBlock], x: Tensor) -> list[Tensor]:
    """Return what goes into each block and what the last one returns, on the meta device.

    Parameters and buffers are replaced by tensors without data for the time of the call: running
    statistics, random states and weights stay as they are.

    Args:
        blocks: In order.
        x: Input of the first block, on any device; only its shape, strides and dtype are read.

    Raises:
        ValueError: A block cannot be run on tensors without data, or returns no single tensor.
    """
    found = [x.detach().to("meta")]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for block in blocks:
            chain = Chain(block.children)
            named = (*chain.named_parameters(), *chain.named_buffers())
            empty = {name: tensor.detach().to("meta") for name, tensor in named}
            try:
                output = functional_call(chain, empty, (found[-1],))
            except (RuntimeError, TypeError, ValueError) as error:
                raise ValueError(
                    f"model: the output shape of block {block.name!r} cannot be found: {error}"
                ) from error
            if not isinstance(output, Tensor):
                raise ValueError(
                    f"model: expected block {block.name!r} to return one tensor, "
                    f"got {type(output).__name__}"
                )
            found.append(output.detach())
    return found


def memory_order(x: Tensor) -> list[int]:
    """Return the dimensions from the slowest to the fastest in memory."""
    strides = list(x.stride())
    return sorted(range(x.dim()), key=lambda d: (-strides[d], d))
