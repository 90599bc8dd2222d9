"""From the options a user gave, and perhaps a checkpoint's, to one configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bll.errors import CheckpointError
from bll.training.config import TrainConfig, default_batch_size
from bll.training.rule_options import options_text, plain_options, plain_value

# Where the files lie may change between two parts of a run; their content is verified anyway.
_FREE_ON_RESUME = frozenset({"data_dirs"})


def new_config(given: Mapping[str, Any]) -> TrainConfig:
    """Configuration of a new run: what was given, else the defaults.

    Args:
        given: Options by field name; absent ones take their default.

    Raises:
        ValueError: ``dataset`` is absent, or an option is out of range.
    """
    options = dict(given)
    if "dataset" not in options:
        raise ValueError("dataset: not given; --dataset names the image set of a new run")
    options.setdefault("batch_size", default_batch_size(options.get("model", "mlp")))
    return TrainConfig(**options)


def resumed_config(stored: Mapping[str, Any], given: Mapping[str, Any]) -> TrainConfig:
    """Configuration of a run that goes on: the stored one, with which ``given`` must agree.

    Args:
        stored: The checkpoint's options, as ``TrainConfig.to_record`` wrote them.
        given: Options by field name.

    Raises:
        CheckpointError: The stored options are not those of this version.
        ValueError: An option given again differs from the run's.
    """
    try:
        config = TrainConfig.from_record(stored)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"checkpoint: its options are not usable: {error}") from error
    for name, value in given.items():
        if name == "rule_options" or name in _FREE_ON_RESUME:
            continue
        if value != getattr(config, name):
            option = name.replace("_", "-")
            raise ValueError(
                f"{option}: the run in --out has {getattr(config, name)}, got {value}; "
                "a resumed run keeps its options"
            )
    _check_rule_options(config, given.get("rule_options", {}))
    free = {name: value for name, value in given.items() if name in _FREE_ON_RESUME}
    return TrainConfig.from_record({**config.to_record(), **free})


def _check_rule_options(config: TrainConfig, given: Mapping[str, Any]) -> None:
    """Refuse an option that the run's rule has with another value; a default may be given."""
    rule = config.make_rule()
    for name, value in plain_options(config.rule, given).items():
        own = plain_value(rule, name)
        if value != own:
            raise ValueError(
                f"rule-option {name}: the run in --out has {options_text({name: own})}, got "
                f"{options_text({name: value})}; a resumed run keeps its options"
            )
