"""A family of messages for each block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from bll.data import ImageData
from bll.features import Pool
from bll.feedback import Message
from bll.rules.base import Rule
from bll.rules.bll import BllRule
from bll.training.config import TrainConfig
from bll.training.rule_options import rule_with_options
from bll.training.trainer import Trainer


@dataclass(frozen=True)
class _RuleOfEach(BllRule):
    """Takes every block's loss by a rule of its own, found by the block's message."""

    own: Mapping[Message, Rule] = field(default_factory=dict)

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """The loss of the block whose message this is, 0-dim."""
        assert message is not None
        return self.own[message].loss(feature, labels, message, pool)


class FamiliesTrainer(Trainer):
    """Trains by rule `bll` whose messages are of one family in one block, of another in the next.

    Args:
        config: The options, of rule `bll`; all but the family hold for every block.
        data: The image set.
        families: Names of families, one for each block but the last.

    Raises:
        ValueError: Another rule, or another number of families.
    """

    def __init__(self, config: TrainConfig, data: ImageData, families: Sequence[str]) -> None:
        super().__init__(config, data)
        handle = self.model.bll
        if config.rule != "bll":
            raise ValueError(f"rule: expected bll, got {config.rule!r}")
        if len(families) != len(handle.messages):
            raise ValueError(
                f"families: expected {len(handle.messages)}, one for each block with a message, "
                f"got {len(families)}"
            )
        options = {n: value for n, value in config.rule_options.items() if n != "family"}
        rules = [rule_with_options(config.rule, family, options) for family in families]
        handle.rule = _RuleOfEach(own=dict(zip(handle.messages, rules, strict=True)))
