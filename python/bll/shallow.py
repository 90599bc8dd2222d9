"""Blocks too shallow to learn a good feature."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from bll.blocks import Block


class ShallowBlockWarning(UserWarning):
    """A block is too shallow to learn a good feature, such as a stem cut off from its stage."""


def shallow_blocks(blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks before the last that are too shallow to learn a good feature.

    Such is a block with at most one weighted layer where the others have two or more on average: a
    stem cut off from the first stage. A network of single layers has none.
    """
    total = sum(block.layers for block in blocks)
    others = len(blocks) - 1
    return [b for b in blocks[:-1] if b.layers <= 1 and total - b.layers >= 2 * others]


def warn_of_shallow_blocks(blocks: Sequence[Block]) -> None:
    """Warn of every shallow block by name."""
    for block in shallow_blocks(blocks):
        others = sum(b.layers for b in blocks) - block.layers
        warnings.warn(
            f"block {block.name!r} holds {block.layers} weighted layer(s), the {len(blocks) - 1} "
            f"others {others}: so shallow a block learns a poor feature and costs accuracy; name "
            "a later module as its end",
            ShallowBlockWarning,
            stacklevel=2,
        )
