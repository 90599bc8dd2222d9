"""Image sets as normalised float tensors on the device that trains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from bll.data.errors import DataError
from bll.data.image_data import ImageData, Images, Labels


@dataclass(frozen=True)
class Split:
    """Images ``[N, C, H, W]`` in a float dtype and labels ``[N]`` in int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        """Number of images."""
        return self.labels.shape[0]


def channel_statistics(images: Images) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, exactly, from the histogram of byte values.

    Args:
        images: ``[N, C, H, W]`` uint8.

    Returns:
        Two float64 arrays ``[C]``.

    Raises:
        DataError: A channel is constant.
    """
    values = np.arange(256, dtype=np.float64)
    means, stds = [], []
    for channel in range(images.shape[1]):
        share = np.bincount(images[:, channel].ravel(), minlength=256) / images[:, channel].size
        mean = float(share @ values)
        std = float(np.sqrt(share @ (values - mean) ** 2))
        if std == 0.0:
            raise DataError(f"channel {channel}: every pixel is {mean:g}; it cannot be normalised")
        means.append(mean)
        stds.append(std)
    return np.array(means), np.array(stds)


def _to_split(
    images: Images,
    labels: Labels,
    table: np.ndarray,
    device: torch.device,
    channels_last: bool,
) -> Split:
    channels = table.shape[0]
    normalised = np.empty(images.shape, table.dtype)
    for channel in range(channels):
        normalised[:, channel] = table[channel][images[:, channel]]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return Split(
        torch.from_numpy(normalised).to(device, memory_format=layout),
        torch.from_numpy(labels.copy()).to(device),
    )


def to_splits(
    data: ImageData,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    channels_last: bool = False,
) -> tuple[Split, Split]:
    """Training and test split, normalised by the training set's mean and standard deviation.

    Args:
        data: The image set.
        dtype: ``torch.float32`` or ``torch.float64``.
        device: Where the tensors go.
        channels_last: Lay the images out as NHWC in memory.

    Raises:
        ValueError: ``dtype`` is another one.
        DataError: A channel of the training images is constant.
    """
    numpy_dtypes = {torch.float32: np.float32, torch.float64: np.float64}
    if dtype not in numpy_dtypes:
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
    mean, std = channel_statistics(data.train_images)
    # 256 values per channel: a look-up replaces arithmetic on every pixel.
    table = ((np.arange(256) - mean[:, None]) / std[:, None]).astype(numpy_dtypes[dtype])
    where = torch.device(device)
    train = _to_split(data.train_images, data.train_labels, table, where, channels_last)
    test = _to_split(data.test_images, data.test_labels, table, where, channels_last)
    return train, test
