"""What a run means by an option it does not name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Defaults of the rule `bll` when the first tables were made; what these found changed them.
FIRST_DEFAULTS: Final = {"family": "gaussian", "pool": ["mean", 4], "standardize": "none"}
_RULES: Final = ("bll", "bp-deepsup")


def rule_options(run: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a run's rule that are not the rule's own defaults."""
    first = FIRST_DEFAULTS if run["rule"] in _RULES else {}
    return {**first, **run["rule_options"]}
