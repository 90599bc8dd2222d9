"""Learning rules, one file each, behind the small protocol of `bll.rules.base.Rule`."""

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
from bll.rules.registry import get_rule, rule_names
from bll.rules.sim import SimRule

__all__ = [
    "BllKlRule",
    "BllProtoRule",
    "BllRule",
    "BpRule",
    "DeepSupervisionRule",
    "DfaRule",
    "DrtpRule",
    "FaRule",
    "FrozenRule",
    "MonoForwardRule",
    "PredRule",
    "PredSimRule",
    "Rule",
    "SimRule",
    "TpsgdRule",
    "get_rule",
    "rule_names",
]
