"""The optimiser of a run: one group per block, its norms and biases apart where weights decay."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from bll.optim import param_groups
from bll_kernels.optim import BlockAdam, BlockSGD

if TYPE_CHECKING:
    from bll.training.config import TrainConfig

OPTIMIZERS = ("adam", "adamw", "sgd")

BlockOptimizer = BlockAdam | BlockSGD


def make_optimizer(model: nn.Module, config: TrainConfig) -> BlockOptimizer:
    """Return the optimiser `config` asks for.

    Weight decay is of weights alone: tensors of one dimension (norms and biases) and the rule's own
    do not decay.

    Args:
        model: The wrapped model; its shapes are known.
        config: The options of the run.
    """
    groups = param_groups(model, lr=config.lr, weight_decay=config.weight_decay)
    groups = [part for group in groups for part in _decaying_apart(group)]
    if config.optimizer == "sgd":
        return BlockSGD(groups, momentum=config.momentum, nesterov=config.momentum > 0)
    return BlockAdam(groups, decoupled_weight_decay=config.optimizer == "adamw")


def _decaying_apart(group: dict[str, Any]) -> list[dict[str, Any]]:
    if not group["weight_decay"]:
        return [group]
    decaying = [p for p in group["params"] if p.dim() > 1]
    others = [p for p in group["params"] if p.dim() <= 1]
    parts = [{**group, "params": decaying}]
    parts += [{**group, "params": others, "name": f"{group['name']}.norms", "weight_decay": 0.0}]
    return [part for part in parts if part["params"]]
