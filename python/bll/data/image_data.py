"""A labelled image set as it was stored: bytes and class numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bll.data.errors import DataError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageData:
    """Training and test images of one data set.

    Attributes:
        name: Name of the data set.
        class_names: One name per class; a label is an index into it.
        train_images: ``[N, C, H, W]`` uint8.
        train_labels: ``[N]`` int64.
        test_images: ``[M, C, H, W]`` uint8.
        test_labels: ``[M]`` int64.
    """

    name: str
    class_names: tuple[str, ...]
    train_images: Images
    train_labels: Labels
    test_images: Images
    test_labels: Labels

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together, with a ``DataError``."""
        self._check_split("train", self.train_images, self.train_labels)
        self._check_split("test", self.test_images, self.test_labels)
        train, test = self.train_images.shape[1:], self.test_images.shape[1:]
        if train != test:
            raise DataError(f"{self.name}: training images are {train}, test images {test}")

    def _check_split(self, split: str, images: Images, labels: Labels) -> None:
        where = f"{self.name}, {split} set"
        if images.ndim != 4 or images.size == 0:
            raise DataError(f"{where}: expected images [N, C, H, W], got shape {images.shape}")
        if labels.shape != images.shape[:1]:
            raise DataError(f"{where}: expected {images.shape[0]} labels, got shape {labels.shape}")
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= len(self.class_names):
            raise DataError(
                f"{where}: expected labels 0 to {len(self.class_names) - 1}, got {low} to {high}"
            )

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.train_images.shape[1:]
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)
