"""Image sets: official formats, normalised tensors, the order of batches, and augmentation."""

from __future__ import annotations

from bll.data.augment import Augmentation
from bll.data.errors import DataError
from bll.data.image_data import ImageData
from bll.data.registry import DATASET_NAMES, load_dataset
from bll.data.sampler import BatchSampler, SamplerState
from bll.data.splits import Split, channel_statistics, to_splits

__all__ = [
    "DATASET_NAMES",
    "Augmentation",
    "BatchSampler",
    "DataError",
    "ImageData",
    "SamplerState",
    "Split",
    "channel_statistics",
    "load_dataset",
    "to_splits",
]
