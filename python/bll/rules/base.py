"""What a learning rule is: what it reads, whether it cuts, its message and its local loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from bll.features import FeatureSpec, Pool
from bll.feedback import Message


class Rule(ABC):
    """A learning rule for the blocks before the last; the last block gets cross-entropy.

    A rule is a frozen dataclass: its fields are its options, it pickles, and it holds no tensors.
    What a block learns for the rule lives in the message module that `make_message` returns.

    Attributes:
        name: Name the rule is asked for and reported under.
        reads: What the loss of a block reads, of "output" (its own), "label", "feedback" (its own
            message) and "downstream" (gradients of later blocks). A schedule may run blocks apart
            only where "downstream" is absent.
        cuts: Whether gradients stop at the borders between blocks.
        local: Whether the blocks before the last have a loss of their own.
    """

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]]
    cuts: ClassVar[bool]
    local: ClassVar[bool]

    @abstractmethod
    def describe(self) -> dict[str, object]:
        """Return the rule's name, family and options as plain data, for reports."""

    def feature_spec(self, feature: Tensor) -> FeatureSpec | None:
        """Return how features of this shape are read, or None if they are not."""
        return None

    def make_message(
        self, num_classes: int, seed: int, device: torch.device | None
    ) -> Message | None:
        """Return a fresh message for one block, still without shapes, or None if there is none."""
        return None

    @abstractmethod
    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the local loss of one block, 0-dim, averaged over the batch.

        Args:
            feature: [B, D], or a [B, C, H, W] map when `pool` is given.
            labels: [B], int64.
            message: What `make_message` returned, with its shapes.
            pool: (kind, grid) in front of the loss, or None.
        """
