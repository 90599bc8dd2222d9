"""What is recorded of an epoch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class EpochRecord:
    """Result of one epoch.

    Attributes:
        epoch: Number of the epoch, from 1.
        train_loss: Mean over the steps of the sum of local losses.
        test_accuracy: Percentage of the full test set, 0 to 100.
        seconds: Time of the training steps.
        test_seconds: Time of the evaluation.
        block_losses: Mean over the steps of every block's loss, by block name.
    """

    epoch: int
    train_loss: float
    test_accuracy: float
    seconds: float
    test_seconds: float
    block_losses: dict[str, float]

    def to_record(self) -> dict[str, Any]:
        """The result as values JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> EpochRecord:
        """Inverse of ``to_record``."""
        return cls(**record)
