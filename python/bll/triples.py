"""Batches of the rules that learn from good inputs and bad ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bll.hooks import check_labels, wrapped_handle
from bll.tokens import IGNORE_INDEX


def contrast(model: nn.Module, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the batch that the model's rule learns from.

    For most rules it is the one given. For a contrastive rule (`Rule.contrasts`) each sample gives
    three rows in a row: the input that shows its own label, one that shows a wrong label (drawn
    from torch's generator), and the input itself; their labels are -100, -100 and the sample's. So
    one loop serves every rule:

        x, y = bll.contrast(model, x, y)
        model(x, y=y).loss.backward()

    Args:
        model: A wrapped model.
        inputs: [B, ...], floating-point.
        labels: [B], integers from 0 to the number of classes less one.

    Returns:
        Inputs [3 B, ...] and labels [3 B]; those given for a rule that does not contrast.

    Raises:
        TypeError: Inputs or labels are no tensor of the right kind.
        ValueError: The model is not wrapped, or shapes do not fit each other or the rule.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if not handle.rule.contrasts:
        return inputs, labels
    labels = check_labels(labels)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"inputs: expected a tensor, got {type(inputs).__name__}")
    if labels.shape != inputs.shape[:1]:
        raise ValueError(
            f"labels: expected one per sample, shape [{len(inputs)}], got {list(labels.shape)}"
        )
    classes = handle.num_classes
    if classes < 2:
        raise ValueError("labels: a wrong label needs two classes or more, the model has 1")
    own = labels.to(inputs.device)
    wrong = (own + torch.randint(1, classes, own.shape, device=own.device)) % classes
    shown = [handle.rule.show(inputs, chosen, classes) for chosen in (own, wrong)]
    ignored = torch.full_like(own, IGNORE_INDEX)
    shape = (3 * len(inputs), *inputs.shape[1:])
    rows = torch.empty(
        shape, dtype=inputs.dtype, device=inputs.device, memory_format=_memory_format(inputs)
    )
    for place, part in enumerate((*shown, inputs)):
        if part.shape != inputs.shape:
            raise ValueError(
                f"inputs: expected the rule to show labels in inputs of shape "
                f"{list(inputs.shape)}, it returned {list(part.shape)}"
            )
        rows[place::3] = part
    return rows, torch.stack([ignored, ignored, own], 1).flatten()


def _memory_format(inputs: Tensor) -> torch.memory_format:
    """The memory format that convolutions see in images."""
    images = inputs.dim() == 4 and not inputs.is_contiguous()
    channels_last = images and inputs.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if channels_last else torch.contiguous_format
