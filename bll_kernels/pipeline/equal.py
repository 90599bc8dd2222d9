"""Which blocks of a network are equal, so that one batched step can serve them."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.step import Updater
from bll_kernels.pipeline.together import settings
from bll_kernels.pipeline.traced import TraceableBlock


@runtime_checkable
class StackableBlock(TraceableBlock, Protocol):
    """A block that says what it is made of."""

    def structure(self) -> Hashable:
        """Equal for blocks of the same modules and loss; values of tensors do not count."""


def equal_blocks(blocks: Sequence[Block], updaters: Sequence[Updater]) -> range:
    """The longest run of neighbouring blocks that are equal; the first of those of one length.

    Equal are blocks of one structure, whose parameters and buffers have the same shapes, dtypes and
    devices, and whose optimisers have the same options.

    Raises:
        ValueError: no two neighbours are equal; the message says in what the first ones differ.
    """
    forms = [_form(block, updater) for block, updater in zip(blocks, updaters, strict=True)]
    best = range(0)
    start = 0
    for index in range(1, len(forms) + 1):
        if index == len(forms) or forms[index] is None or forms[index] != forms[start]:
            if index - start > len(best):
                best = range(start, index)
            start = index
    if len(best) > 1 and forms[best[0]] is not None:
        return best
    raise ValueError(
        "batched_blocks: expected two or more neighbouring blocks of the same structure, shapes "
        f"and optimiser options, got none among {[block.name for block in blocks]}"
    )


def _form(block: Block, updater: Updater) -> Any:
    if not isinstance(block, StackableBlock):
        return None
    tensors = [
        [(x.shape, x.dtype, x.device, x.requires_grad, x.is_contiguous()) for x in group]
        for group in (block.parameters(), block.buffers())
    ]
    return (type(block), block.structure(), tensors, settings(updater, block.parameters()))
