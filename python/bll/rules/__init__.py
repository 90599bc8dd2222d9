"""Learning rules, one file each, behind the small protocol of `bll.rules.base.Rule`."""

from bll.rules.base import Rule
from bll.rules.bll import BllRule
from bll.rules.bll_kl import BllKlRule
from bll.rules.bp import BpRule, DeepSupervisionRule
from bll.rules.registry import get_rule, rule_names

__all__ = [
    "BllKlRule",
    "BllRule",
    "BpRule",
    "DeepSupervisionRule",
    "Rule",
    "get_rule",
    "rule_names",
]
