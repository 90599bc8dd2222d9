"""Reader of the IDX format: a magic number, big-endian sizes, then the bytes of the array."""

from __future__ import annotations

import math
import struct

import numpy as np
import numpy.typing as npt

from bll.data.errors import DataError

_UNSIGNED_BYTE = 0x08


def parse_idx(content: bytes, name: str, ndim: int) -> npt.NDArray[np.uint8]:
    """Array held by an IDX file of unsigned bytes.

    Args:
        content: The decompressed file.
        name: Name of the file, for messages.
        ndim: Number of dimensions the array must have.

    Returns:
        A read-only array over ``content``.

    Raises:
        DataError: The magic number, the number of dimensions or the length is not as expected.
    """
    header = 4 + 4 * ndim
    if len(content) < header:
        raise DataError(f"{name}: expected an IDX header of {header} bytes, got {len(content)}")
    magic = struct.unpack_from(">I", content)[0]
    expected_magic = _UNSIGNED_BYTE << 8 | ndim
    if magic != expected_magic:
        raise DataError(f"{name}: expected IDX magic 0x{expected_magic:08x}, got 0x{magic:08x}")
    shape = struct.unpack_from(f">{ndim}I", content, 4)
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(f"{name}: shape {shape} needs {expected} bytes, got {len(content)}")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
