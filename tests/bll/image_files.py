"""Tiny image sets in the official formats, and as arrays, for the tests."""

from __future__ import annotations

import gzip
import hashlib
import struct
from pathlib import Path

import numpy as np

from bll.data.cifar10 import BatchFiles
from bll.data.fashion_mnist import IdxFiles
from bll.data.files import DataFile
from bll.data.image_data import ImageData


def idx_bytes(array: np.ndarray) -> bytes:
    header = struct.pack(f">I{array.ndim}I", 0x0800 | array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


def describe(name: str, content: bytes) -> DataFile:
    return DataFile(name, len(content), hashlib.sha256(content).hexdigest())


def write_idx_set(directory: Path, train: int = 40, test: int = 20, seed: int = 0) -> IdxFiles:
    """Four small IDX files in ``directory`` under the official names, and their description."""
    rng = np.random.default_rng(seed)
    files = []
    for prefix, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % 10
        images = rng.integers(0, 100, (count, 28, 28)) + 15 * labels[:, None, None]
        for name, array in ((f"{prefix}-images-idx3", images), (f"{prefix}-labels-idx1", labels)):
            content = idx_bytes(array)
            name = f"{name}-ubyte.gz"
            (directory / name).write_bytes(gzip.compress(content))
            files.append(describe(name, content))
    return IdxFiles(*files)


def write_batch_set(directory: Path, per_batch: int = 10, seed: int = 0) -> BatchFiles:
    """Six small binary batches in ``directory`` under the official names."""
    rng = np.random.default_rng(seed)
    files = []
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        labels = (np.arange(per_batch) % 10).astype(np.uint8)
        pixels = rng.integers(0, 256, (per_batch, 3072), dtype=np.uint8)
        content = np.concatenate([labels[:, None], pixels], axis=1).tobytes()
        (directory / name).write_bytes(content)
        files.append(describe(name, content))
    return BatchFiles(tuple(files[:5]), files[5])


def image_data(
    train: int = 64, test: int = 40, shape: tuple[int, int, int] = (1, 8, 8), seed: int = 0
) -> ImageData:
    """Three easily told classes of noisy images."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(0, 200, (3, *shape))

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(count) % 3
        noise = rng.integers(0, 50, (count, *shape))
        return (patterns[labels] + noise).astype(np.uint8), labels.astype(np.int64)

    return ImageData("patterns", ("a", "b", "c"), *split(train), *split(test))
