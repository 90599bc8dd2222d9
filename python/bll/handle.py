"""`model.bll`: what a wrapped model learns for its rule, the step in progress, and reports."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from bll.backward_path import BackwardPath
from bll.blocks import Block
from bll.chain import why_not_apart
from bll.features import select_logits
from bll.feedback import Later, Message
from bll.hooks import keep_cuts_last, remove_hooks
from bll.locality import LocalityError, survey_blocks
from bll.losses import Previous, error_loss, local_loss
from bll.output import LocalOutput
from bll.rules.base import Rule
from bll.shallow import warn_of_shallow_blocks
from bll.step import Step, detached_copy, map_tensors, total_loss
from bll.table import block_records, block_text
from bll.tokens import TokenOptions


class LocalLearning(nn.Module):
    """The state of a wrapped model: rule, blocks and message modules.

    It is registered as `model.bll`, so its tensors stand under `bll.` in the model's parameters
    and `state_dict`.

    Attributes:
        rule: The learning rule.
        num_classes: Number of classes.
        label_smoothing: Of the last block's cross-entropy.
        tokens: How [B, T, D] features meet labels.
        cut_tensors: Whether what goes round a border is detached too.
        blocks: The blocks in execution order; complete once `ready`.
        messages: One message module per block before the last, if the rule has any.
        backward_path: Weights of the backward pass, if the rule has its own.
        ready: Whether shapes are known and locality is checked.
        why_in_place: Why the executor may not run the blocks apart; None: it may.
    """

    def __init__(
        self,
        rule: Rule,
        blocks: tuple[Block, ...],
        *,
        num_classes: int,
        label_smoothing: float,
        tokens: TokenOptions,
        cut_tensors: bool,
        seed: int,
        device: torch.device | None,
    ) -> None:
        super().__init__()
        self.rule = rule
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.tokens = tokens
        self.cut_tensors = cut_tensors and rule.cuts
        self.blocks = blocks
        self.ready = False
        self.why_in_place: str | None = None
        self.root_hooks: list[RemovableHandle] = []
        self.cut_hooks: list[RemovableHandle] = []
        self.path_hooks: list[RemovableHandle] = []
        self.backward_path: BackwardPath | None = None
        self.messages = nn.ModuleList()
        if rule.local:
            for index in range(len(blocks) - 1):
                message = rule.make_message(num_classes, (seed * 1_000_003 + index) % 2**63, device)
                if message is not None:
                    self.messages.append(message)
        for message, following in pairwise(self._own_messages()):
            message.follow(following)
        self._step: Step | None = None
        self._last: dict[str, Tensor] = {}

    def __getstate__(self) -> dict[str, Any]:
        # The step in progress belongs to one forward pass, and its tensors cannot be copied.
        return {**self.__dict__, "_step": None}

    def forward(self, features: Any) -> Any:
        """Return the input: a wrapped nn.Sequential calls this last child as it calls the rest."""
        return features

    def complete(self, blocks: tuple[Block, ...], model: nn.Module) -> None:
        """Take the surveyed blocks and give the message modules their shapes."""
        parameters = dict(model.named_parameters())
        later = [
            Later(tuple(model.get_submodule(name) for name in block.modules), before.feature)
            for before, block in pairwise(blocks)
            if before.feature is not None
        ]
        for index, own in enumerate(self._own_messages()):
            own.watch(later[index:])
        for block, message in zip(blocks, self._messages(), strict=False):
            if message is None or message.ready or block.feature is None:
                continue
            owned = block.parameters[-1:]
            device = parameters[owned[0]].device if owned else None
            message.materialize(block.feature, device=device)
        self.blocks = blocks
        self.why_in_place = why_not_apart(model, [b.cut for b in blocks if b.cut], self.rule)
        self.ready = True
        if self.rule.cuts:
            warn_of_shallow_blocks(blocks)

    def _messages(self) -> list[Message | None]:
        """Return the message of each block; the last has none."""
        found = self._own_messages()
        return [*found, *[None] * (len(self.blocks) - len(found))]

    def _message(self, index: int) -> Message | None:
        """Return the message of one block, if it has any."""
        return cast(Message, self.messages[index]) if index < len(self.messages) else None

    def _own_messages(self) -> list[Message]:
        return [cast(Message, message) for message in self.messages]

    def in_step(self) -> bool:
        """Whether a forward pass with labels is in progress."""
        return self._step is not None

    def begin(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        labels: Tensor | None,
        items: Tensor | int | None = None,
    ) -> None:
        """Open a step; without labels the forward pass is the plain one.

        Args:
            model: The model.
            args: Its positional inputs.
            kwargs: Its keyword inputs.
            labels: [batch] or [batch, T], int64.
            items: Number of labels to average over, if not those of this batch.
        """
        self._step = None
        if labels is None:
            return
        if not self.ready:
            self._survey(model, args, kwargs)
        keep_cuts_last(self.cut_hooks)
        self._step = Step(self.tokens.aligned(labels), items, self.cut_tensors)
        if self._step.earlier is not None:
            self._step.earlier.__enter__()

    def leave(self) -> None:
        """End the part of the step in which operations are watched, however it went."""
        if self._step is not None and self._step.earlier is not None:
            self._step.earlier.__exit__(None, None, None)
            self._step.earlier = None

    def _survey(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        cuts = [block.cut for block in self.blocks if block.cut is not None]
        try:
            blocks = survey_blocks(
                model, cuts, self.rule, args, kwargs, cut_tensors=self.cut_tensors
            )
        except LocalityError:
            remove_hooks(model)
            raise
        self.complete(blocks, model)

    def end_block(self, index: int, output: Any) -> Any:
        """Take the loss of one block and return what the next one gets; None: the output itself."""
        step = self._step
        if step is None:
            return None
        block = self.blocks[index]
        ended = [*step.losses, *step.waiting]
        if len(ended) != (index if self.rule.local else 0):
            raise RuntimeError(
                f"block {block.name!r} ended out of order: blocks with a loss so far are {ended}"
            )
        if "error" in self.rule.reads:
            step.waiting[block.name] = output
        elif self.rule.local:
            step.losses[block.name] = self._local_loss(index, output, step.labels, step.handed_on)
        if "input" in self.rule.reads:
            step.handed_on = map_tensors(Tensor.detach, output)
        if step.earlier is not None:
            step.earlier.begin_block()
        if self.rule.cuts:
            hand_on = detached_copy if block.hands_on_copy else Tensor.detach
            return map_tensors(hand_on, output)
        if self.rule.local and block.hands_on_copy:
            return map_tensors(Tensor.clone, output)
        return None

    def block_loss(self, index: int, output: Any, labels: Tensor, handed_on: Any = None) -> Tensor:
        """Return the loss of one block: the rule's, or the last block's cross-entropy.

        Args:
            index: The block.
            output: What its module returned.
            labels: [batch] or [batch, T], int64.
            handed_on: Output of the block before, detached, if the rule reads "input".
        """
        labels = self.tokens.aligned(labels)
        if index == len(self.blocks) - 1:
            return self._cross_entropy(select_logits(output), labels)
        return self._local_loss(index, output, labels, handed_on)

    def _local_loss(self, index: int, output: Any, labels: Tensor, handed_on: Any) -> Tensor:
        previous = None
        if index > 0 and "input" in self.rule.reads:
            previous = Previous(self.blocks[index - 1], self._message(index - 1), handed_on)
        return local_loss(
            self.rule, self.blocks[index], self._message(index), self.tokens, output, labels,
            previous,
        )  # fmt: skip

    def _error_losses(self, step: Step, logits: Tensor) -> None:
        """Take the losses that waited for the gradient of the model's loss to its logits."""
        leaf = logits.detach().requires_grad_()
        with torch.enable_grad():
            (error,) = torch.autograd.grad(self._cross_entropy(leaf, step.labels), leaf)
        messages = self._messages()
        for index, (name, output) in enumerate(step.waiting.items()):
            step.losses[name] = error_loss(
                self.rule,
                self.blocks[index],
                messages[index],
                self.tokens,
                output,
                step.labels,
                error,
            )

    def end_step(self, output: Any) -> LocalOutput | None:
        """Close the step: the last block's cross-entropy, the sum, the output object."""
        step, self._step = self._step, None
        if step is None:
            return None
        expected = len(self.blocks) - 1 if self.rule.local else 0
        ended = [*step.losses, *step.waiting]
        if len(ended) != expected:
            missing = [block.name for block in self.blocks[:-1] if block.name not in ended]
            raise RuntimeError(f"the forward pass did not end block {missing[0]!r}")
        logits = select_logits(output)
        if step.waiting:
            self._error_losses(step, logits)
        step.losses[self.blocks[-1].name] = self._cross_entropy(logits, step.labels)
        if step.items is not None:
            share = self.tokens.counted(step.labels) / step.items
            step.losses = {name: loss * share for name, loss in step.losses.items()}
        self._last = {name: loss.detach() for name, loss in step.losses.items()}
        return LocalOutput(total_loss(step.losses), logits, step.losses)

    def _cross_entropy(self, logits: Tensor, labels: Tensor) -> Tensor:
        if logits.shape != (*labels.shape, self.num_classes):
            raise ValueError(
                f"labels: expected logits of shape [*labels.shape, num_classes] = "
                f"{[*labels.shape, self.num_classes]}, got {list(logits.shape)}; several labels "
                "per sample are not supported"
            )
        return self.tokens.cross_entropy(logits, labels, self.label_smoothing)

    def metrics(self) -> dict[str, float]:
        """Return the losses of the last step with labels: `loss` and `block/<name>/loss`.

        Reads the values back from their device, which waits for it.
        """
        blocks = {f"block/{name}/loss": float(loss) for name, loss in self._last.items()}
        return {"loss": sum(blocks.values()), **blocks} if blocks else {}

    def describe(self) -> dict[str, object]:
        """Return rule, family, options and block names as plain data, for reports."""
        return {**self.rule.describe(), "blocks": [block.name for block in self.blocks]}

    def table(self) -> list[dict[str, Any]]:
        """Return one plain record per block: what `summary` prints, and a little more."""
        return block_records(self.blocks, self._messages(), self.rule, self.why_in_place)

    def summary(self) -> str:
        """Return the table of blocks as text; shapes are those of the example or first batch."""
        return block_text(self.table())

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        return f"rule={self.rule.name}, blocks={[block.name for block in self.blocks]}"
