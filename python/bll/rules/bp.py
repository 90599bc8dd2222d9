"""The references: end-to-end backpropagation without and with the local heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from bll.rules.base import Rule
from bll.rules.bll import BllRule


@dataclass(frozen=True)
class BpRule(Rule):
    """The plain network with the final cross-entropy: rule `bp`."""

    name: ClassVar[str] = "bp"
    source: ClassVar[str] = "Rumelhart, Hinton, Williams 1986"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "downstream"})
    cuts: ClassVar[bool] = False
    local: ClassVar[bool] = False


@dataclass(frozen=True)
class DeepSupervisionRule(BllRule):
    """The local losses of `bll` on a network that is not cut: rule `bp-deepsup`."""

    name: ClassVar[str] = "bp-deepsup"
    source: ClassVar[str] = "Lee et al. 2015, with the heads of `bll`"
    reads: ClassVar[frozenset[str]] = frozenset({"output", "label", "feedback", "downstream"})
    cuts: ClassVar[bool] = False
