"""Copies of models and inputs that carry shapes but no data."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

ModelT = TypeVar("ModelT", bound=nn.Module)


def tensors_to_meta(tree: Any) -> Any:
    """Replace every tensor of a nested structure by a meta tensor of the same shape and strides."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach().to("meta"), tree)


def meta_copy(model: ModelT) -> ModelT:
    """Deep-copy a model without copying its weights: every tensor becomes a meta tensor.

    Parameters that are one object stay one object, so tied weights stay tied. Plain tensor
    attributes of modules are replaced as well, since an operation cannot mix devices.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in memo and not is_lazy(parameter):
                memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), False)
        for value in (*module.buffers(recurse=False), *vars(module).values()):
            if isinstance(value, Tensor) and id(value) not in memo and not is_lazy(value):
                memo[id(value)] = value.detach().to("meta")
    return copy.deepcopy(model, memo)


def prepare_for_trace(model: nn.Module) -> None:
    """Make every gradient path of a copied model visible, whatever the sample batch size.

    Frozen parameters are thawed, since where a gradient could go is what counts; modules are put
    in training mode, but normalisation over the batch is not, since it refuses a batch of one.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point() or parameter.is_complex():
            parameter.requires_grad_(True)
    for module in model.modules():
        module.training = not isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
