"""Options of rules as text and as plain values: for the command line, files and checkpoints."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from bll.rules.base import Rule
from bll.rules.registry import get_rule
from bll_kernels.families import Family, get_family

#: A family's number on the command line: `gaussian-precision:0.5`, `categorical:4`.
_FAMILY_NUMBERS = {"gaussian-precision": "tau", "categorical": "group"}


def plain_options(rule: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of a rule as values that JSON can hold.

    Args:
        rule: The rule's name.
        given: Values by option. Text is read by the option's type: `0.5`, `8`, `max:2` (a pooling),
            `gaussian-precision:0.5` (a family with its number); anything else must be of that
            type already, a pooling as [kind, grid].

    Returns:
        The same names. Poolings are lists, families text.

    Raises:
        ValueError: Unknown rule or option, or a value not of the option's type; the message names
            the option. Whether the rule accepts it is for `rule_with_options`.
    """
    kinds = _kinds(type(get_rule(rule)))
    plain: dict[str, Any] = {}
    for name, value in given.items():
        if name not in kinds:
            known = f"one of {', '.join(kinds)}" if kinds else "none"
            raise ValueError(
                f"rule-option {name}: rule {rule!r} has no such option; expected {known}"
            )
        plain[name] = _plain(name, kinds[name], value)
    return plain


def rule_with_options(rule: str, family: str | None, options: Mapping[str, Any]) -> Rule:
    """Return the rule of that name with these options.

    Args:
        rule: The rule's name.
        family: Its family, NAME or NAME:NUMBER; None: that of `options`, or the rule's default.
        options: What `plain_options` returned.

    Raises:
        ValueError: The rule refuses a value, or the family is given twice.
    """
    if family is not None and "family" in options:
        raise ValueError("rule-option family: given by --family too; expected one of the two")
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in options.items()
    }
    try:
        if "family" in values:
            values["family"] = _family(values["family"])
        elif family is not None:
            values["family"] = _family(family)
        return get_rule(rule, **values)
    except ValueError as error:
        prefix = "rule-option " if str(error).partition(":")[0] in options else ""
        raise ValueError(f"{prefix}{error}") from error


def plain_value(rule: Rule, name: str) -> Any:
    """Return the value that one option of a rule has, as `plain_options` would."""
    value = getattr(rule, name)
    if name == "family":
        return _family_text(get_family(value))
    return list(value) if isinstance(value, tuple) else value


def options_text(options: Mapping[str, Any]) -> str:
    """Return options as they are written on the command line, separated by commas."""
    return ", ".join(
        f"{name}={':'.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in options.items()
    )


def _kinds(rule: type[Rule]) -> dict[str, frozenset[Any]]:
    """Return the types that each option may have, None left out."""
    hints = typing.get_type_hints(rule)
    fields = [field.name for field in dataclasses.fields(rule) if field.init]  # type: ignore[arg-type]
    kinds = {}
    for name in fields:
        hint = hints[name]
        is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
        parts = typing.get_args(hint) if is_union else (hint,)
        kinds[name] = frozenset(parts) - {types.NoneType}
    return kinds


def _plain(name: str, kinds: frozenset[Any], value: Any) -> Any:
    read: Any = None
    if Family in kinds:
        expected, read = "a family, NAME or NAME:NUMBER", _canonical_family(value)
    elif str in kinds:
        expected, read = "text", value if isinstance(value, str) else None
    elif int in kinds:
        expected, read = "a whole number", _whole(value)
    elif float in kinds:
        expected, read = "a finite number", _number(value)
    elif any(typing.get_origin(kind) is tuple for kind in kinds):
        expected, read = "a pooling KIND:GRID, such as max:2", _pool(value)
    else:
        expected = "a Python object, which only bll.get_rule can give"
    if read is None:
        raise ValueError(f"rule-option {name}: expected {expected}, got {value!r}")
    return read


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _whole(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    try:
        return int(value)
    except ValueError:
        return None


def _pool(value: Any) -> list[Any] | None:
    parts = value.split(":") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or len(parts) != 2 or not isinstance(parts[0], str):
        return None
    grid = _whole(parts[1])
    return None if grid is None else [parts[0], grid]


def _canonical_family(value: Any) -> str | None:
    if not isinstance(value, str):
        return None
    try:
        return _family_text(_family(value))
    except ValueError as error:
        raise ValueError(f"rule-option {error}") from error


def _family_text(family: Family) -> str:
    number = _FAMILY_NUMBERS.get(family.name)
    value = getattr(family, number) if number else None
    return family.name if value is None else f"{family.name}:{value}"


def _family(text: str) -> Family:
    name, colon, number = text.partition(":")
    try:
        if not colon:
            return get_family(name)
        option = _FAMILY_NUMBERS.get(name)
        value = _whole(number) if option == "group" else _number(number)
        if option is None or value is None:
            numbered = ", ".join(f"{name}:{option}" for name, option in _FAMILY_NUMBERS.items())
            raise ValueError(f"expected NAME or {numbered}, got {text!r}")
        return get_family(Family(name, **{option: value}))  # type: ignore[arg-type]
    except ValueError as error:
        reason = str(error).removeprefix("family: ")
        raise ValueError(f"family: {reason}") from error
