"""The error of the data readers."""

from __future__ import annotations


class DataError(ValueError):
    """A data file is missing, unreadable, truncated, or not the official one."""
