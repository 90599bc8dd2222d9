"""Accuracy on a whole split."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from bll.data import Split
from bll.hooks import wrapped_handle
from bll.prediction import predict

BATCH_SIZE = 1000


@torch.no_grad()
def evaluate(
    model: nn.Module,
    split: Split,
    *,
    autocast: torch.dtype | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> float | None:
    """Percentage of ``split`` that ``model`` classifies rightly, in evaluation mode.

    The model's mode is put back afterwards.

    Args:
        model: Maps images to logits; of a wrapped model the rule says how it predicts.
        split: Images and labels; every one is used.
        autocast: Half type to compute in, or ``None``.
        should_stop: Asked between batches.

    Returns:
        Accuracy between 0 and 100, or ``None`` when it was stopped.
    """
    device = split.images.device
    correct = torch.zeros((), dtype=torch.int64, device=device)
    is_wrapped = wrapped_handle(model) is not None
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(split), BATCH_SIZE):
            if should_stop():
                return None
            images = split.images[start : start + BATCH_SIZE]
            with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                logits = predict(model, images) if is_wrapped else model(images)
            correct += (logits.argmax(1) == split.labels[start : start + BATCH_SIZE]).sum()
    finally:
        model.train(was_training)
    return 100.0 * int(correct) / len(split)
