"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bll.data.cifar10 import load_cifar10
from bll.data.digits import load_digits
from bll.data.errors import DataError
from bll.data.fashion_mnist import load_fashion_mnist
from bll.data.files import Directory
from bll.data.image_data import ImageData

_FROM_FILES: Mapping[str, Callable[[Sequence[Directory]], ImageData]] = {
    "fashion-mnist": load_fashion_mnist,
    "cifar-10": load_cifar10,
}
_BUNDLED: Mapping[str, Callable[[], ImageData]] = {"digits": load_digits}

DATASET_NAMES: tuple[str, ...] = (*_BUNDLED, *_FROM_FILES)


def load_dataset(name: str, directories: Sequence[Directory] = ()) -> ImageData:
    """Data set ``name``, read whole and verified.

    Args:
        name: One of ``DATASET_NAMES``.
        directories: Where its files lie, searched in order; bundled sets take none.

    Raises:
        DataError: The name is unknown, directories were given for a bundled set, or a file is
            missing, damaged, or not the official one.
    """
    if name in _BUNDLED:
        if directories:
            raise DataError(f"{name}: comes with scikit-learn and takes no directory")
        return _BUNDLED[name]()
    if name not in _FROM_FILES:
        raise DataError(f"dataset: expected one of {', '.join(DATASET_NAMES)}, got {name!r}")
    return _FROM_FILES[name](directories)
