"""Recipes: the options of a training run in a TOML file."""

from __future__ import annotations

import dataclasses
import sys
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Union, get_args, get_origin, get_type_hints

from bll.training.config import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Where the data lie belongs to the machine, the directory of the run to the command.
_NOT_IN_A_RECIPE = frozenset({"data_dirs"})
_WORDS = {
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
    dict: "a table",
}


class RecipeError(ValueError):
    """A recipe cannot be used; the message names the file, the key, and what was expected."""


@dataclass(frozen=True)
class Recipe:
    """What a recipe file says.

    Attributes:
        path: The file.
        options: Options by field name of `TrainConfig`, without the seed.
        seeds: Seeds of the runs, at least one.
    """

    path: Path
    options: dict[str, Any]
    seeds: tuple[int, ...]


def read_recipe(path: Path) -> Recipe:
    """Read a recipe.

    Keys are the option names of ``bll train`` with ``_`` for ``-``; ``rule_options`` is a table of
    options of the rule, and ``seeds`` a list of seeds, one run each, in place of ``seed``.

    Raises:
        RecipeError: The file is missing or not TOML, a key is unknown, a value has another type,
            or the options do not fit together.
    """
    table = _load(path)
    seeds = _seeds(path, table)
    expected = _expected()
    for key, value in table.items():
        if key not in expected:
            known = ", ".join(sorted([*expected, "seed", "seeds"]))
            raise RecipeError(f"{path}: {key}: no such option; expected one of {known}")
        if key == "blocks" and isinstance(value, list):
            continue  # names of modules, which the configuration checks
        if not _fits(value, expected[key]):
            raise RecipeError(f"{path}: {key}: expected {_WORDS[expected[key]]}, got {value!r}")
    options: dict[str, Any] = {
        key: float(value) if expected[key] is float else value for key, value in table.items()
    }
    if isinstance(options.get("blocks"), list):
        options["blocks"] = tuple(options["blocks"])
    if "dataset" not in options:
        raise RecipeError(f"{path}: dataset: expected the name of an image set, it is missing")
    try:
        for seed in seeds:
            TrainConfig(**options, seed=seed)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{path}: {error}") from error
    return Recipe(path, options, seeds)


def _load(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"{path}: could not be read: {error.strerror or error}") from error
    try:
        table: dict[str, Any] = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: expected a TOML file: {error}") from error
    return table


def _seeds(path: Path, table: dict[str, Any]) -> tuple[int, ...]:
    """Take ``seed`` or ``seeds`` out of the table."""
    if "seed" in table and "seeds" in table:
        raise RecipeError(f"{path}: seeds: expected either seed or seeds, got both")
    key = "seeds" if "seeds" in table else "seed"
    given = table.pop(key, 0)
    seeds = given if key == "seeds" else [given]
    if not isinstance(seeds, list) or not seeds or not all(_fits(seed, int) for seed in seeds):
        what = "a list of integers" if key == "seeds" else "an integer"
        raise RecipeError(f"{path}: {key}: expected {what}, got {given!r}")
    if len(set(seeds)) != len(seeds):
        raise RecipeError(f"{path}: seeds: expected different seeds, got {seeds}")
    return tuple(seeds)


def _expected() -> dict[str, type]:
    """The type of every key but the seeds."""
    hints = get_type_hints(TrainConfig)
    names = [field.name for field in dataclasses.fields(TrainConfig)]
    return {n: _plain(hints[n]) for n in names if n not in _NOT_IN_A_RECIPE | {"seed"}}


def _plain(hint: Any) -> type:
    """The type of a field when given: ``int`` of ``int | None``, ``dict`` of ``dict[...]``."""
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(part for part in get_args(hint) if part is not type(None))
    plain: type = get_origin(hint) or hint
    return plain


def _fits(value: object, expected: type) -> bool:
    if isinstance(value, bool):
        return expected is bool
    return isinstance(value, (int, float) if expected is float else expected)
