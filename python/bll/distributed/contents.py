"""What a block holds, by names that do not depend on the rank."""

from __future__ import annotations

from torch import Tensor

from bll.executor import WrappedBlock
from bll.handle import LocalLearning


def block_tensors(handle: LocalLearning, block: WrappedBlock) -> dict[str, Tensor]:
    """Return what a block and its message hold, by name inside the block: parameters, buffers."""
    found: dict[str, Tensor] = {}
    for index, child in enumerate(block.children):
        found.update({f"{index}.{name}": x.detach() for name, x in child.state_dict().items()})
    if block.index < len(handle.messages):
        message = handle.messages[block.index].state_dict()
        found.update({f"message.{name}": x.detach() for name, x in message.items()})
    return found
