"""Chained feedback apart from the blocks, for the executor's feedback lane."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bll.feedback import Message
from bll.feedback_chain import FeedbackBlock, next_state


class ChainedFeedback:
    """The states of a chain of feedback blocks, from published weights; see `FeedbackPath`.

    What comes down to block k is the state of block k + 1, which block k's own feedback weights
    turn into its messages: those it trains, so they stay in its loss.

    Args:
        messages: Of the blocks before the last, in order.

    Raises:
        TypeError: one is no `FeedbackBlock`.
    """

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages: list[FeedbackBlock] = []
        for message in messages:
            if not isinstance(message, FeedbackBlock):
                raise TypeError(
                    f"messages: expected a FeedbackBlock each, got {type(message).__name__}"
                )
            self.messages.append(message)
        self.blocks = len(self.messages)
        self._received: list[Tensor | None] = [None] * self.blocks

    def begin(self) -> None:
        """See `FeedbackPath`."""
        for message, value in zip(self.messages, self._received, strict=True):
            message.receive(value)

    def end(self) -> None:
        """See `FeedbackPath`."""
        for message in self.messages:
            message.receive(None)

    def publish(self, block: int) -> list[Tensor]:
        """Weight and bias of a block's state."""
        message = self.messages[block]
        return [message.state_weight.detach().clone(), message.state_bias.detach().clone()]

    def run(self, published: Sequence[Sequence[Tensor]]) -> list[Tensor | None]:
        """The state of the next block, [C, F], for each but the last with messages."""
        found: list[Tensor | None] = [None] * self.blocks
        state: Tensor | None = None
        for block in reversed(range(1, self.blocks)):
            weight, bias = published[block]
            state = found[block - 1] = next_state(state, weight, bias)
        return found

    def receive(self, block: int, value: Tensor) -> None:
        """See `FeedbackPath`; the memory stays, since traced steps read it."""
        held = self._received[block]
        if held is not None and held.shape == value.shape and held.dtype == value.dtype:
            held.copy_(value)
            return
        held = self._received[block] = value.clone()
        self.messages[block].receive(held)
