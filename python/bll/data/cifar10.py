"""CIFAR-10 in its official binary form: five training batches and one test batch.

A record is one label byte, then 1,024 red, 1,024 green and 1,024 blue bytes in row-major order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bll.data.errors import DataError
from bll.data.files import DataFile, Directory, read_verified
from bll.data.image_data import ImageData, Images, Labels

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
_SHAPE = (3, 32, 32)
_RECORD = 1 + 3 * 32 * 32


@dataclass(frozen=True)
class BatchFiles:
    """The binary batches of a CIFAR-10-like image set."""

    train: tuple[DataFile, ...]
    test: DataFile


OFFICIAL_FILES = BatchFiles(
    train=tuple(
        DataFile(f"data_batch_{number}.bin", 10_000 * _RECORD, digest)
        for number, digest in enumerate(
            (
                "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
                "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
                "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
                "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
                "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
            ),
            start=1,
        )
    ),
    test=DataFile(
        "test_batch.bin",
        10_000 * _RECORD,
        "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    ),
)


def parse_batch(content: bytes, name: str) -> tuple[Images, Labels]:
    """Images ``[N, 3, 32, 32]`` and labels ``[N]`` of one binary batch.

    Raises:
        DataError: The content is not a whole number of records.
    """
    if len(content) == 0 or len(content) % _RECORD:
        raise DataError(
            f"{name}: expected whole records of {_RECORD} bytes, got {len(content)} bytes"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return records[:, 1:].reshape(-1, *_SHAPE), records[:, 0].astype(np.int64)


def load_cifar10(directories: Sequence[Directory], files: BatchFiles = OFFICIAL_FILES) -> ImageData:
    """CIFAR-10 from the first directory that holds each batch.

    Args:
        directories: Where to look, in order; the batches may lie in several directories.
        files: The batches to expect.

    Returns:
        50,000 training and 10,000 test images, ``[N, 3, 32, 32]``.

    Raises:
        DataError: A batch is missing, damaged, or not the official one.
    """
    batches = [
        parse_batch(read_verified(file, directories), file.name)
        for file in (*files.train, files.test)
    ]
    test_images, test_labels = batches.pop()
    return ImageData(
        name="cifar-10",
        class_names=CLASS_NAMES,
        train_images=np.concatenate([images for images, _ in batches]),
        train_labels=np.concatenate([labels for _, labels in batches]),
        test_images=test_images,
        test_labels=test_labels,
    )
