"""The 8x8 handwritten digits that come with scikit-learn: no file, no download."""

from __future__ import annotations

import numpy as np

from bll.data.errors import DataError
from bll.data.image_data import ImageData

_TEST_EVERY = 5


def load_digits() -> ImageData:
    """Digits with a fixed stratified split.

    Within each class, in the stored order, every fifth image is a test image. The split needs no
    random numbers, so it is the same on every machine.

    Returns:
        1,442 training and 355 test images, ``[N, 1, 8, 8]`` with pixel values 0 to 16.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits as read_digits
    except ImportError as error:
        raise DataError(
            "digits: scikit-learn is needed; install the extra: pip install 'bll-kernels[train]'"
        ) from error
    raw = read_digits()
    images = raw.images.astype(np.uint8)[:, None]
    labels = raw.target.astype(np.int64)
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        is_test[np.flatnonzero(labels == label)[_TEST_EVERY - 1 :: _TEST_EVERY]] = True
    return ImageData(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train_images=images[~is_test],
        train_labels=labels[~is_test],
        test_images=images[is_test],
        test_labels=labels[is_test],
    )
