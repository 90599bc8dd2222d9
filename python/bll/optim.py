"""Optimiser groups: one per block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from bll.hooks import wrapped_handle


def param_groups(
    model: nn.Module, *, lr: float | Mapping[str, float], **defaults: Any
) -> list[dict[str, Any]]:
    """Return one optimiser group per block, and one per message table without weight decay.

    Every parameter of the model, `model.bll` included, is in exactly one group. Each group carries
    its `name` (the block's, with `.message` appended for its table), `lr` and the defaults. A
    block whose parameters all belong to an earlier one (tied weights, in a rule that does not cut)
    has no group.

    Args:
        model: A wrapped model whose shapes are known (wrapped with `example`, or run once).
        lr: Learning rate, or one per block name.
        **defaults: Further options of every group, such as `weight_decay`.

    Raises:
        ValueError: The model is not wrapped or not ready, or `lr` lacks or misnames a block.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    names = [block.name for block in handle.blocks]
    if isinstance(lr, Mapping) and set(lr) != set(names):
        raise ValueError(f"lr: expected one rate for each of {names}, got {sorted(lr)}")
    parameters = dict(model.named_parameters())
    groups = []
    for index, block in enumerate(handle.blocks):
        rate = lr[block.name] if isinstance(lr, Mapping) else lr
        own = [parameters[name] for name in block.parameters]
        if own:
            groups.append({**defaults, "params": own, "name": block.name, "lr": rate})
        table = list(handle.messages[index].parameters()) if index < len(handle.messages) else []
        if table:
            group = {"params": table, "name": f"{block.name}.message", "lr": rate}
            groups.append({**defaults, **group, "weight_decay": 0.0})
    return groups
