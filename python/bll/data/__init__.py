"""Image sets: readers of the official formats, normalised tensors, and the order of batches."""

from __future__ import annotations

from bll.data.errors import DataError
from bll.data.image_data import ImageData
from bll.data.registry import DATASET_NAMES, load_dataset
from bll.data.sampler import BatchSampler, SamplerState
from bll.data.splits import Split, to_splits

__all__ = [
    "DATASET_NAMES",
    "BatchSampler",
    "DataError",
    "ImageData",
    "SamplerState",
    "Split",
    "load_dataset",
    "to_splits",
]
