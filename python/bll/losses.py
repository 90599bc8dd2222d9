"""The loss of one block, from what its module returned: features, positions, then the rule."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from bll.blocks import Block
from bll.features import FeatureSpec, latents
from bll.feedback import Message
from bll.rules.base import Before, Rule
from bll.tokens import TokenOptions
from bll_kernels.functional.weights import row_weights


class Previous(NamedTuple):
    """The block before, for a rule that reads "input".

    Attributes:
        block: The block.
        message: Its message.
        output: What its module returned, detached.
    """

    block: Block
    message: Message | None
    output: Any


def local_loss(
    rule: Rule,
    block: Block,
    message: Message | None,
    tokens: TokenOptions,
    output: Any,
    labels: Tensor,
    previous: Previous | None = None,
) -> Tensor:
    """Return the rule's loss of a block, 0-dim.

    Args:
        rule: The rule.
        block: The block.
        message: Its message.
        tokens: How [B, T, D] features meet labels.
        output: What the block's module returned.
        labels: [batch] or [batch, T], int64.
        previous: The block before, if the rule reads "input" and there is one.

    Raises:
        ValueError: Positions are to be left out, and the rule cannot; or the features of two blocks
            have different numbers of rows.
    """
    spec = _spec(block)
    feature = latents(output, spec)
    given = labels.to(feature.device, non_blocking=True)
    feature, labels, weight = tokens.rows(feature, given)
    before = None if previous is None else _before(previous, tokens, given, feature)

    def loss_of_rows() -> Tensor:
        if before is None:
            return rule.loss(feature, labels, message, spec.pool)
        return rule.input_loss(feature, labels, message, spec.pool, before)

    if weight is None:
        return loss_of_rows()
    with row_weights(weight) as weights:
        loss = loss_of_rows()
    if not weights.used:
        raise ValueError(
            f"ignore_index: rule {rule.name!r} cannot leave positions out; wrap with "
            "ignore_index=None"
        )
    return loss


def error_loss(
    rule: Rule,
    block: Block,
    message: Message | None,
    tokens: TokenOptions,
    output: Any,
    labels: Tensor,
    error: Tensor,
) -> Tensor:
    """Return the loss of a rule that reads the gradient of the model's loss to its logits.

    Args:
        rule: The rule.
        block: The block.
        message: Its message.
        tokens: How [B, T, D] features meet labels.
        output: What the block's module returned.
        labels: [batch] or [batch, T], int64.
        error: [*labels.shape, classes]; 0 where a position does not count.

    Raises:
        ValueError: Every position of a feature is to learn from the one error of its sample.
    """
    spec = _spec(block)
    feature = latents(output, spec)
    there = error.to(feature.device, non_blocking=True).flatten(0, -2)
    feature, _, _ = tokens.rows(feature, labels.to(feature.device, non_blocking=True))
    if len(feature) != len(there):
        raise ValueError(
            f"tokens: rule {rule.name!r} has one error per label, expected a label per position "
            f"or pooled positions, got {len(there)} errors for {len(feature)} rows"
        )
    return rule.error_loss(feature, there, message, spec.pool)


def _before(previous: Previous, tokens: TokenOptions, labels: Tensor, feature: Tensor) -> Before:
    """Return the block before as rows beside those of `feature`."""
    spec = _spec(previous.block)
    rows = tokens.rows(latents(previous.output, spec).to(feature.device), labels).feature
    if len(rows) != len(feature):
        raise ValueError(
            f"tokens: the rule compares block {previous.block.name!r} with the next row by row; "
            f"they have {len(rows)} and {len(feature)} rows"
        )
    return Before(rows, previous.message, spec.pool)


def _spec(block: Block) -> FeatureSpec:
    if block.feature is None:
        raise RuntimeError(f"block {block.name!r} has no feature to take a local loss on")
    return block.feature
