"""What a wrapped model returns when it is given labels."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class LocalOutput(NamedTuple):
    """The losses and logits of one forward pass.

    A named tuple, so that DDP, FSDP2 and trainers which look into tuples find the tensors in it
    (`out[0]` is the loss), and so that it pickles.

    Attributes:
        loss: Sum of the block losses, 0-dim. One `loss.backward()` trains every block.
        logits: Output of the last block, [batch, num_classes] or [batch, T, num_classes].
        block_losses: Block name -> its loss, 0-dim, in execution order.
    """

    loss: Tensor
    logits: Tensor
    block_losses: dict[str, Tensor]
