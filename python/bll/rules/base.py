"""What a learning rule is: what it reads, whether it cuts, its message and its local loss."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bll.backward_path import BackwardPath
from bll.features import FeatureSpec, Pool
from bll.feedback import Message


class Before(NamedTuple):
    """The block before, as the loss of a rule that reads "input" sees it.

    Attributes:
        feature: Its output, which is this block's input, constant: [B, D], or a map.
        message: Its message.
        pool: How its map is read, or None.
    """

    feature: Tensor
    message: Message | None
    pool: Pool | None


class Rule:
    """A learning rule for the blocks before the last; the last block gets cross-entropy.

    A rule is a frozen dataclass: its fields are its options, it pickles, and it holds no tensors.
    What a block learns for the rule lives in the message module that `make_message` returns.

    Attributes:
        name: Name the rule is asked for and reported under.
        source: Where the rule was published, in a line.
        reads: What the loss of a block reads. Of its own: "output", "label", "feedback" (its
            message), "input". Of other blocks: "next" (weights of the block behind),
            "next-feedback" (weights of later blocks' messages), "error" (the gradient of the
            model's loss to its output) and "downstream" (gradients of later blocks). A schedule
            may run blocks apart only where nothing of others is read.
        cuts: Whether gradients stop at the borders between blocks.
        local: Whether the blocks before the last have a loss of their own. With "error" among its
            `reads` that is `error_loss`, taken once the model's output is known.
        needs_example: Whether the messages can only be made where shapes are known, so that `wrap`
            needs an example.
        votes: Whether a model's prediction is that of all blocks together, see `bll.predict`.
        contrasts: Whether it learns from inputs that show labels, right ones and wrong ones, see
            `bll.contrast`.
    """

    name: ClassVar[str]
    source: ClassVar[str] = ""
    reads: ClassVar[frozenset[str]]
    cuts: ClassVar[bool]
    local: ClassVar[bool]
    needs_example: ClassVar[bool] = False
    votes: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False

    def describe(self) -> dict[str, object]:
        """Return the rule's name, family (None where it has none) and options as plain data."""
        own = [field.name for field in dataclasses.fields(self) if field.init]  # type: ignore[arg-type]
        values = {name: getattr(self, name) for name in own}
        plain = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {"rule": self.name, "family": None, **plain}

    def feature_spec(self, feature: Tensor) -> FeatureSpec | None:
        """Return how features of this shape are read, or None if they are not."""
        return None

    def make_message(
        self, num_classes: int, seed: int, device: torch.device | None
    ) -> Message | None:
        """Return a fresh message for one block, still without shapes, or None if there is none."""
        return None

    def loss(
        self, feature: Tensor, labels: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return the local loss of one block, 0-dim, averaged over the batch.

        Not called for rules that read "error" or have no local loss. With "input" among its `reads`
        it is the loss of the first block, and `input_loss` that of the others.

        Args:
            feature: [B, D], or a [B, C, H, W] map when `pool` is given.
            labels: [B], int64.
            message: What `make_message` returned, with its shapes.
            pool: (kind, grid) in front of the loss, or None.
        """
        raise NotImplementedError(f"rule {self.name!r} has no local loss")

    def input_loss(
        self,
        feature: Tensor,
        labels: Tensor,
        message: Message | None,
        pool: Pool | None,
        before: Before,
    ) -> Tensor:
        """Return the loss of a block that has one before it, in a rule that reads "input", 0-dim.

        Args:
            feature: As in `loss`.
            labels: As in `loss`.
            message: As in `loss`.
            pool: As in `loss`.
            before: The block before: what it handed on, and its message, of which only what no
                loss trains may be read.
        """
        raise NotImplementedError(f"rule {self.name!r} reads no input")

    def error_loss(
        self, feature: Tensor, error: Tensor, message: Message | None, pool: Pool | None
    ) -> Tensor:
        """Return what stands for a loss in a rule that reads "error", 0-dim.

        Args:
            feature: As in `loss`.
            error: Gradient of the model's loss to its logits, constant, of the logits' shape.
            message: As in `loss`.
            pool: As in `loss`.
        """
        raise NotImplementedError(f"rule {self.name!r} reads no error")

    def scores(self, feature: Tensor, message: Message | None, pool: Pool | None) -> Tensor:
        """Return one block's class scores, [B, C], in a rule whose blocks vote.

        In a contrastive rule: how good the inputs seem to the block, [B, 1].

        Args:
            feature: As in `loss`.
            message: As in `loss`.
            pool: As in `loss`.
        """
        raise NotImplementedError(f"rule {self.name!r} predicts by the model's output")

    def show(self, inputs: Tensor, labels: Tensor, num_classes: int) -> Tensor:
        """Return inputs that show labels, in a contrastive rule.

        Args:
            inputs: [B, ...].
            labels: [B], int64.
            num_classes: Number of classes.

        Raises:
            TypeError: Inputs of a kind that cannot show a label.
            ValueError: Inputs of a shape that cannot.
        """
        raise NotImplementedError(f"rule {self.name!r} shows no labels")

    def make_backward(self, model: nn.Module, seed: int) -> BackwardPath | None:
        """Return weights of a backward path of the whole model's own, or None if there are none.

        Raises:
            ValueError: The model has a module the rule cannot serve.
        """
        return None
