"""Finding data files in a list of directories and proving that they are the official ones."""

from __future__ import annotations

import gzip
import hashlib
import os
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from bll.data.errors import DataError

Directory = str | os.PathLike[str]


@dataclass(frozen=True)
class DataFile:
    """One official file: its name and what its decompressed content must be.

    Attributes:
        name: File name; a name that ends in ``.gz`` is decompressed while it is read.
        size: Number of bytes of the decompressed content.
        sha256: SHA-256 of the decompressed content, as lower-case hexadecimal digits.
    """

    name: str
    size: int
    sha256: str


def find_file(name: str, directories: Sequence[Directory]) -> Path:
    """Path of the first file called ``name`` in ``directories``, searched in order.

    Raises:
        DataError: No directory was given, or none of them holds the file.
    """
    if not directories:
        raise DataError(f"{name}: no directory to look in was given (--data-dir)")
    for directory in directories:
        path = Path(directory) / name
        if path.is_file():
            return path
    searched = ", ".join(str(Path(directory)) for directory in directories)
    raise DataError(f"{name}: no such file in {searched}")


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")


def read_verified(file: DataFile, directories: Sequence[Directory]) -> bytes:
    """Decompressed content of ``file``, checked by length and SHA-256.

    Raises:
        DataError: The file is missing, unreadable, damaged, of another length, or has
            another checksum; the message names the file, what was expected and what came.
    """
    path = find_file(file.name, directories)
    try:
        with _open(path) as stream:
            # One byte more than expected shows an oversized file without unpacking all of it.
            content = stream.read(file.size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: could not be read to its end: {error}") from error
    if len(content) != file.size:
        got = f"more than {file.size}" if len(content) > file.size else str(len(content))
        raise DataError(f"{path}: expected {file.size} bytes of content, got {got}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise DataError(
            f"{path}: SHA-256 of the content does not match: expected {file.sha256}, got {digest}"
        )
    return content
