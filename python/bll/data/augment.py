"""Random crops and mirror images of a batch that is already on the device that trains."""

from __future__ import annotations

import torch
from torch import Tensor


class Augmentation:
    """Crops of images with a black border, and mirror images, drawn for every image by itself.

    An image [H, W] with a border of `crop` pixels on each side is cut to [H, W] at one of
    (2 crop + 1)^2 places, all equally likely; with `flip` every second one, on average, is
    mirrored left to right. Nothing loops over the images and nothing waits for the device: the
    numbers are drawn on the CPU, so that they are the same for every device.

    Args:
        crop: Pixels of the border; 0 leaves the place alone.
        flip: Whether images are mirrored.
        black: [C], what a black pixel is after normalisation, on the device of the images.
        seed: Seed of the draws.

    Raises:
        ValueError: ``crop`` is negative.
    """

    def __init__(self, crop: int, flip: bool, black: Tensor, seed: int) -> None:
        if crop < 0:
            raise ValueError(f"crop: expected 0 or more, got {crop}")
        self.crop = crop
        self.flip = flip
        self.seed = seed
        self._black = black.view(1, -1, 1, 1)

    def __call__(self, images: Tensor, step: int) -> Tensor:
        """Return the images of training step ``step``, changed at random.

        The draws depend on the seed and the step alone, so a run that was stopped goes on with
        the same ones.

        Args:
            images: [B, C, H, W], on the device of ``black``; not changed.
            step: Number of the step in the run, from 0.

        Returns:
            Images of the same shape, dtype and memory layout.
        """
        if not (self.crop or self.flip):
            return images
        batch, channels, height, width = images.shape
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + step) % 2**63)
        limit = 2 * self.crop + 1
        drawn = torch.stack(
            [
                torch.randint(limit, (batch,), generator=generator) - self.crop,
                torch.randint(limit, (batch,), generator=generator) - self.crop,
                torch.randint(2, (batch,), generator=generator) * int(self.flip),
            ]
        )
        down, right, mirrored = drawn.to(images.device, non_blocking=True)[:, :, None]
        # Where each pixel of the result comes from: [B, H] and [B, W].
        rows = torch.arange(height, device=images.device) + down
        columns = torch.arange(width, device=images.device)
        columns = torch.where(mirrored.bool(), width - 1 - columns, columns) + right
        seen = _inside(rows, height)[:, None, :, None] & _inside(columns, width)[:, None, None, :]
        found = images[
            torch.arange(batch, device=images.device)[:, None, None, None],
            torch.arange(channels, device=images.device)[None, :, None, None],
            rows.clamp(0, height - 1)[:, None, :, None],
            columns.clamp(0, width - 1)[:, None, None, :],
        ]
        return torch.where(seen, found, self._black).contiguous(memory_format=_layout(images))


def _inside(places: Tensor, size: int) -> Tensor:
    return (places >= 0) & (places < size)


def _layout(images: Tensor) -> torch.memory_format:
    # One channel is contiguous in both layouts; the strides then say nothing that matters.
    nhwc = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if nhwc else torch.contiguous_format
