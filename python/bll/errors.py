"""Errors that more than one part of the package raises or handles."""

from __future__ import annotations

from collections.abc import Sequence


class CheckpointError(ValueError):
    """A checkpoint could not be written, or cannot be trusted."""


class RankFailure(RuntimeError):
    """Another rank raised, died or hung.

    Attributes:
        ranks: Global ranks at fault, as far as this one can tell.
    """

    def __init__(self, message: str, ranks: Sequence[int]) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)
