"""Fashion-MNIST in its official form: four gzip-compressed IDX files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bll.data.files import DataFile, Directory, read_verified
from bll.data.idx import parse_idx
from bll.data.image_data import ImageData, Images, Labels

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@dataclass(frozen=True)
class IdxFiles:
    """The four files of an IDX image set."""

    train_images: DataFile
    train_labels: DataFile
    test_images: DataFile
    test_labels: DataFile


OFFICIAL_FILES = IdxFiles(
    train_images=DataFile(
        "train-images-idx3-ubyte.gz",
        47_040_016,
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ),
    train_labels=DataFile(
        "train-labels-idx1-ubyte.gz",
        60_008,
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ),
    test_images=DataFile(
        "t10k-images-idx3-ubyte.gz",
        7_840_016,
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ),
    test_labels=DataFile(
        "t10k-labels-idx1-ubyte.gz",
        10_008,
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)


def load_fashion_mnist(
    directories: Sequence[Directory], files: IdxFiles = OFFICIAL_FILES
) -> ImageData:
    """Fashion-MNIST from the first directory that holds each file.

    Args:
        directories: Where to look, in order.
        files: The files to expect.

    Returns:
        60,000 training and 10,000 test images, ``[N, 1, 28, 28]``.

    Raises:
        DataError: A file is missing, damaged, or not the official one.
    """

    def images(file: DataFile) -> Images:
        return parse_idx(read_verified(file, directories), file.name, ndim=3)[:, None]

    def labels(file: DataFile) -> Labels:
        return parse_idx(read_verified(file, directories), file.name, ndim=1).astype(np.int64)

    return ImageData(
        name="fashion-mnist",
        class_names=CLASS_NAMES,
        train_images=images(files.train_images),
        train_labels=labels(files.train_labels),
        test_images=images(files.test_images),
        test_labels=labels(files.test_labels),
    )
