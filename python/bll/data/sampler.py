"""The order in which training images are visited; it can be stopped and continued exactly."""

from __future__ import annotations

from typing import NamedTuple

import torch


class SamplerState(NamedTuple):
    """Where a sampler stands.

    Attributes:
        generator: Bytes of the random generator as they were when the epoch began.
        position: Number of batches of the epoch already handed out.
    """

    generator: torch.Tensor
    position: int


class BatchSampler:
    """Index batches of one seeded permutation per epoch.

    A last, shorter batch is left out: batch normalisation would see other statistics in it. The
    permutation is drawn on the CPU, so every device sees the same order.

    Args:
        size: Number of images.
        batch_size: Images per batch.
        seed: Seed of the order.

    Raises:
        ValueError: ``batch_size`` is not between 1 and ``size``.
    """

    def __init__(self, size: int, batch_size: int, seed: int) -> None:
        if not 1 <= batch_size <= size:
            raise ValueError(f"batch_size: expected 1 to {size} (the images), got {batch_size}")
        self._size = size
        self._batch_size = batch_size
        self._generator = torch.Generator().manual_seed(seed)
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch_generator = self._generator.get_state()
        self._order = torch.randperm(self._size, generator=self._generator)
        self._position = 0

    @property
    def batches_per_epoch(self) -> int:
        """Number of batches in an epoch."""
        return self._size // self._batch_size

    @property
    def position(self) -> int:
        """Number of batches of this epoch already handed out."""
        return self._position

    @property
    def epoch_is_over(self) -> bool:
        """Whether every batch of this epoch was handed out."""
        return self._position == self.batches_per_epoch

    def next_batch(self) -> torch.Tensor:
        """Indices ``[batch_size]`` (int64, CPU) of the next batch.

        Raises:
            RuntimeError: The epoch is over; ``next_epoch`` begins another one.
        """
        if self.epoch_is_over:
            raise RuntimeError("the epoch is over; call next_epoch() first")
        start = self._position * self._batch_size
        self._position += 1
        return self._order[start : start + self._batch_size]

    def next_epoch(self) -> None:
        """Begin another epoch, with another permutation."""
        self._begin_epoch()

    def state(self) -> SamplerState:
        """State from which ``restore`` continues with the very next batch."""
        return SamplerState(self._epoch_generator.clone(), self._position)

    def restore(self, state: SamplerState) -> None:
        """Continue from ``state``.

        Raises:
            ValueError: The position does not lie in an epoch of this sampler.
        """
        if not 0 <= state.position <= self.batches_per_epoch:
            raise ValueError(
                f"position: expected 0 to {self.batches_per_epoch}, got {state.position}"
            )
        self._generator.set_state(state.generator)
        self._begin_epoch()
        self._position = state.position
