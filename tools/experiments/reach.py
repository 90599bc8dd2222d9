"""Local losses that reach into the blocks before their own: context from neighbours.

With a reach of 0 this is local learning; with all blocks in reach it is deep supervision. Gomez et
al. (arXiv 2010.04116) call a reach of one pairwise interlocking backpropagation. A block's update
then waits for the next one, and a block's backward pass runs once for every loss that reaches it.
"""

from __future__ import annotations

import torch

from bll.data import ImageData
from bll.output import LocalOutput
from bll.training.config import TrainConfig
from bll.training.trainer import Trainer


class ReachingTrainer(Trainer):
    """Trains every block by its own loss and by those of the next blocks, and by no other.

    Args:
        config: The options, of a rule with local losses that cuts nothing (`bp-deepsup`).
        data: The image set.
        reach: How many blocks before its own a loss reaches, 0 or more.

    Raises:
        ValueError: The rule cuts, or an option does not fit.
    """

    def __init__(self, config: TrainConfig, data: ImageData, reach: int) -> None:
        super().__init__(config, data)
        handle = self.model.bll
        if handle.rule.cuts:
            raise ValueError(f"rule: expected one that cuts nothing, got {config.rule!r}")
        own = dict(self.model.named_parameters())
        blocks = [[own[name] for name in block.parameters] for block in handle.blocks]
        messages = [list(message.parameters()) for message in handle.messages]
        self.reached = [
            [p for block in blocks[max(0, at - reach) : at + 1] for p in block]
            + (messages[at] if at < len(messages) else [])
            for at in range(len(blocks))
        ]

    def _backward(self, out: LocalOutput) -> None:
        for loss, parameters in zip(out.block_losses.values(), self.reached, strict=True):
            for parameter, grad in zip(
                parameters, torch.autograd.grad(loss, parameters, retain_graph=True), strict=True
            ):
                parameter.grad = grad if parameter.grad is None else parameter.grad + grad
