"""Checks of rules' options; each raises a ValueError that names the option."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

_POOL_KINDS = ("mean", "max", "std")


def _is_number(value: object) -> bool:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and math.isfinite(cast(float, value))


def check_positive(name: str, value: object) -> None:
    """Refuse what is not a positive finite number."""
    if not (_is_number(value) and cast(float, value) > 0):
        raise ValueError(f"{name}: expected a positive finite number, got {value!r}")


def check_not_negative(name: str, value: object) -> None:
    """Refuse what is not a finite number of 0 or more."""
    if not (_is_number(value) and cast(float, value) >= 0):
        raise ValueError(f"{name}: expected a finite number of 0 or more, got {value!r}")


def check_fraction(name: str, value: object) -> None:
    """Refuse what is not a number in [0, 1]."""
    if not (_is_number(value) and 0 <= cast(float, value) <= 1):
        raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")


def check_width(name: str, value: object) -> None:
    """Refuse what is not an int of 1 or more."""
    if not (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        raise ValueError(f"{name}: expected an int of 1 or more, got {value!r}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse what is none of the allowed values."""
    if value not in allowed:
        words = ", ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name}: expected one of {words}, got {value!r}")


def check_pool(name: str, pool: object) -> None:
    """Refuse what is not a pooling of maps, (kind, grid)."""
    valid = (
        isinstance(pool, tuple)
        and len(pool) == 2
        and pool[0] in _POOL_KINDS
        and isinstance(pool[1], int)
        and not isinstance(pool[1], bool)
        and pool[1] >= 1
    )
    if not valid:
        raise ValueError(f"{name}: expected (kind, grid) with kind in {_POOL_KINDS}, got {pool!r}")
