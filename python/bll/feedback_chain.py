"""A learned feedback network in blocks: label -> ... -> block k + 1 -> block k."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll.features import FeatureSpec
from bll.feedback import Message, ShapedMessage


def next_state(above: Tensor | None, weight: Tensor, bias: Tensor) -> Tensor:
    """States [C, F] of a block from those of the one behind it; None: from the one-hot labels."""
    if above is None:
        return torch.tanh(weight.T + bias)
    return torch.tanh(torch.addmm(bias, above, weight.T))


class FeedbackBlock(ShapedMessage):
    """Block k of a chain of feedback blocks, run on one row per class.

    With S the states [C, F] (the one-hot labels above the last block) and sg a stopped gradient

        S_k = tanh(sg(S_{k+1}) V_k^T + v_k)        messages of all classes = S_k U_k^T,  [C, D]

    Messages depend on the label alone, so the chain runs on the C classes and not on the batch.
    Nothing of a block's loss reaches the feedback blocks above, but its messages depend on their
    weights: a rule with chained messages reads "next-feedback". A block runs the whole chain above
    it, which costs (N - k) C F^2 multiply-adds; the executor's feedback lane runs it once for all
    blocks (`receive`).

    Args:
        num_classes: Number of classes C.
        width: Units of a state F.
        std: About the standard deviation of the messages at first; None is 1 / sqrt(D).
        bias: Whether there is a class bias (learned, starting at zero).
        seed: Seed of the draw.
        device: Device of the tensors.
    """

    state_weight: Tensor
    state_bias: Tensor
    message_weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        width: int,
        std: float | None,
        bias: bool,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        names = ("state_weight", "state_bias", "message_weight", *(("bias",) if bias else ()))
        super().__init__(names, seed=seed, device=device)
        self.num_classes = num_classes
        self.width = width
        self.std = std
        # In a tuple, so that the next block's message is not registered under this one as well.
        self._following: tuple[FeedbackBlock, ...] = ()
        self._received: Tensor | None = None
        if not bias:
            self.register_parameter("bias", None)

    def follow(self, following: Message) -> None:
        """Take the states of the next block's message as input."""
        if not isinstance(following, FeedbackBlock):
            raise TypeError(f"following: expected a FeedbackBlock, got {type(following).__name__}")
        self._following = (following,)

    def receive(self, states: Tensor | None) -> None:
        """Read these states of the next block, [C, F]; None: compute them from its weights."""
        self._received = states

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D)."""
        return (self.num_classes, self.message_weight.shape[0])

    def states(self) -> Tensor:
        """Return the state of every class, [C, F]."""
        above = self._received
        if above is None and self._following:
            above = self._following[0].states().detach()
        return next_state(above, self.state_weight, self.state_bias)

    def rows(self) -> Tensor:
        """Return the message of every class, [C, D]."""
        return self.states() @ self.message_weight.T

    def shapes(self, feature: FeatureSpec) -> dict[str, tuple[int, ...]]:
        """See `ShapedMessage.shapes`."""
        inputs = self.width if self._following else self.num_classes
        shapes: dict[str, tuple[int, ...]] = {
            "state_weight": (self.width, inputs),
            "state_bias": (self.width,),
            "message_weight": (feature.width, self.width),
        }
        if self.bias is not None:
            shapes["bias"] = (self.num_classes,)
        return shapes

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return a normal draw whose scale keeps states of order one, and zeros for biases."""
        if name in ("bias", "state_bias"):
            return torch.zeros(shape)
        values = torch.randn(shape, generator=generator)
        if name == "state_weight":
            # One of the inputs of the topmost block is 1, the others are 0.
            return values * (5 / 3) / (math.sqrt(shape[1]) if self._following else 1.0)
        std = 1 / math.sqrt(shape[0]) if self.std is None else self.std
        return values * std / math.sqrt(shape[1])
