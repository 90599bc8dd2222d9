"""Rules by name: those of the modules of this package."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import Any

from bll.rules.base import Rule


def _find_rules() -> dict[str, type[Rule]]:
    """Return the rules that the modules beside this one define, in the order of their names."""
    package = __name__.rpartition(".")[0]
    folder = importlib.import_module(package).__path__
    found: list[type[Rule]] = []
    for entry in pkgutil.iter_modules(folder, package + "."):
        if entry.name == __name__:
            continue
        for value in vars(importlib.import_module(entry.name)).values():
            own = isinstance(value, type) and value.__module__ == entry.name
            if own and issubclass(value, Rule) and "name" in vars(value):
                found.append(value)
    return {rule.name: rule for rule in sorted(found, key=lambda rule: rule.name)}


_RULES = _find_rules()


def rule_names() -> tuple[str, ...]:
    """Return the names `get_rule` and `wrap` know."""
    return tuple(_RULES)


def get_rule(name: str, **options: Any) -> Rule:
    """Return the rule of that name.

    Args:
        name: One of `rule_names()`.
        **options: Fields of the rule, such as `family`, `feedback`, `pool`, `tilt`, `gain`. An
            option given as None takes the rule's default.

    Raises:
        ValueError: Unknown name, an option the rule does not have, or a value it refuses.
    """
    if name not in _RULES:
        raise ValueError(f"rule: expected one of {', '.join(_RULES)}, got {name!r}")
    rule = _RULES[name]
    known = {field.name for field in fields(rule) if field.init}  # type: ignore[arg-type]
    given = {key: value for key, value in options.items() if value is not None}
    for key in given:
        if key not in known:
            raise ValueError(f"{key}: rule {name!r} has no such option")
    return rule(**given)
