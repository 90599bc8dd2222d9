"""Class prototypes: the mean of every class's samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from bll_kernels.autograd import ClassMeans
from bll_kernels.backends.selection import select
from bll_kernels.functional import checks
from bll_kernels.functional.pooling import PoolArgument, pool_in_front
from bll_kernels.functional.weights import refuse_surrounding_weight
from bll_kernels.ops import op


def class_means(
    x: Tensor, labels: Tensor, num_classes: int, *, pool: PoolArgument = None
) -> tuple[Tensor, Tensor]:
    """Mean of the samples of every class, and how many they are.

    Sums run in a fixed order, and nothing waits for the device. The means are differentiable:
    a sample's gradient is that of its class's mean divided by the class's count.

    Args:
        x: samples [B, ...], or maps [B, C, H, W] with `pool`.
        labels: integer class labels [B]. On an accelerator, where no label can be looked at
            without waiting, a label out of range makes every mean NaN.
        num_classes: number of classes, at least 1.
        pool: None, or (kind, g) to pool a map first.

    Returns:
        The means [num_classes, ...] in float32 (float64 for float64), zero for classes without
        samples, and their counts [num_classes], int64.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    refuse_surrounding_weight("class_means")
    checks.check_float_tensor("x", x)
    if x.dim() < 1:
        raise ValueError(f"x: expected [B, ...] with at least 1 dimension, got {tuple(x.shape)}")
    classes = checks.check_classes(num_classes)
    labels = checks.check_labels(labels, x.shape[:1], x, a_name="x")
    checks.check_label_range(labels, classes)
    pooling = pool_in_front("x", x, pool)
    inner = x.shape[1:] if pooling is None else pooling.latents.shape[1:]
    rows = x.reshape(x.shape[0], math.prod(inner)) if pooling is None else pooling.latents
    backend = select(rows.device.type, rows.dtype, "class_means")
    if torch.is_grad_enabled() and rows.requires_grad:
        means, counts = ClassMeans.apply(rows, labels, backend, classes)
    else:
        means, counts = op(backend, "class_means")(rows, labels, classes)
    return means.reshape(classes, *inner), counts
