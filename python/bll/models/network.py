"""What the training command needs to know of a reference network."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Network:
    """A network and where it is cut.

    Attributes:
        model: Maps images ``[B, C, H, W]`` to logits ``[B, num_classes]``, or symbols ``[B, T]`` to
            logits ``[B, T, num_classes]``.
        cuts: Names of the last module of every block but the last, in execution order; what
            follows the last name is the last block. Empty for one block.
    """

    model: nn.Module
    cuts: tuple[str, ...]
