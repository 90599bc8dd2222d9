"""Rules by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from bll.rules.base import Rule
from bll.rules.bll import BllRule
from bll.rules.bll_kl import BllKlRule
from bll.rules.bp import BpRule, DeepSupervisionRule
from bll.rules.dfa import DfaRule
from bll.rules.drtp import DrtpRule, TpsgdRule
from bll.rules.fa import FaRule
from bll.rules.frozen import FrozenRule
from bll.rules.mono_forward import MonoForwardRule
from bll.rules.pred import PredRule
from bll.rules.pred_sim import PredSimRule
from bll.rules.proto import BllProtoRule
from bll.rules.sim import SimRule

_RULES: dict[str, type[Rule]] = {
    rule.name: rule
    for rule in (
        BllRule,
        BllKlRule,
        BllProtoRule,
        PredRule,
        SimRule,
        PredSimRule,
        MonoForwardRule,
        DrtpRule,
        TpsgdRule,
        DfaRule,
        FaRule,
        BpRule,
        DeepSupervisionRule,
        FrozenRule,
    )
}


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
