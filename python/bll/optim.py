"""Optimiser groups and gradient clipping, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bll.handle import LocalLearning
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
    handle = _ready_handle(model)
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


def clip_grad_norm_(
    model: nn.Module, max_norm: float, *, per: str = "block", norm_type: float = 2.0
) -> dict[str, Tensor]:
    """Scale gradients down to a norm, each block's by itself. In place, without host sync.

    A norm over all parameters would let the gradient of one block shrink those of the others,
    which no gradient connects. Under a GradScaler, unscale first.

    Args:
        model: A wrapped model whose blocks are known.
        max_norm: The largest norm that stays.
        per: "block" (its message included) or "global".
        norm_type: The p of the norm.

    Returns:
        The norms before clipping, 0-dim: by block name, or under "global".

    Raises:
        ValueError: The model is not wrapped or not ready, or an argument is out of its range.
    """
    handle = _ready_handle(model)
    if per not in ("block", "global"):
        raise ValueError(f"per: expected 'block' or 'global', got {per!r}")
    if not max_norm > 0:
        raise ValueError(f"max_norm: expected a positive number, got {max_norm!r}")
    clip = torch.nn.utils.clip_grad_norm_
    if per == "global":
        return {"global": clip(model.parameters(), max_norm, norm_type)}
    parameters = dict(model.named_parameters())
    norms = {}
    for index, block in enumerate(handle.blocks):
        own = [parameters[name] for name in block.parameters]
        if index < len(handle.messages):
            own += list(handle.messages[index].parameters())
        norms[block.name] = clip(own, max_norm, norm_type)
    return norms


def _ready_handle(model: nn.Module) -> LocalLearning:
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    return handle
