"""The similarity-matching loss: the batch's normalised Gram matrix against a target's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bll_kernels.autograd import GramLoss
from bll_kernels.backends.selection import select
from bll_kernels.functional import checks
from bll_kernels.functional.pooling import PoolArgument, Pooling, beside_pooled, pool_in_front
from bll_kernels.functional.weights import refuse_surrounding_weight
from bll_kernels.ops import op
from bll_kernels.spec import LABEL_GRAMS


@dataclass(frozen=True)
class _GramCall:
    """Arguments of `gram_loss` up to `center`."""

    x: Tensor
    labels: Tensor | None
    vectors: Tensor | None
    weight: Tensor | None
    backend: str
    options: tuple[Any, ...]
    pooling: Pooling | None
    shape: torch.Size

    def restore(self, grad: Tensor, compact: bool) -> Tensor:
        """Gradient of the op's rows as a gradient of the user's x."""
        if self.pooling is not None:
            return self.pooling.restore(grad, compact)
        return grad.reshape(self.shape)


def _flat(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], math.prod(x.shape[1:]))


def _check_classes_argument(num_classes: int | None, label_gram: str, labels: bool) -> None:
    if not labels:
        if num_classes is not None:
            raise ValueError(
                f"num_classes: expected None beside a target that is not labels, got {num_classes}"
            )
    elif num_classes is not None:
        checks.check_classes(num_classes)
    elif label_gram == "centered":
        raise ValueError(
            'num_classes: expected the number of classes beside labels with label_gram="centered", '
            "got None"
        )


def _target(
    x: Tensor, target: Tensor | str, num_classes: int | None, label_gram: str
) -> tuple[Tensor | None, Tensor | None, float, float]:
    """Labels or vectors, and the target of pairs with the same and with another label."""
    checks.check_choice("label_gram", label_gram, LABEL_GRAMS)
    if isinstance(target, str):
        checks.check_choice("target", target, ("identity",))
        _check_classes_argument(num_classes, label_gram, False)
        return torch.arange(x.shape[0], device=x.device), None, 1.0, 0.0
    if not isinstance(target, Tensor):
        raise TypeError(
            "target: expected integer labels, a tensor of vectors or 'identity', got "
            f"{type(target).__name__}"
        )
    if target.is_floating_point() or target.is_complex():
        vectors = checks.check_partner("target", target, x, "x")
        if vectors.dim() < 2 or vectors.shape[0] != x.shape[0]:
            raise ValueError(
                f"target: expected vectors [{x.shape[0]}, ...], got {tuple(vectors.shape)}"
            )
        _check_classes_argument(num_classes, label_gram, False)
        return None, _flat(vectors.detach()), 0.0, 0.0
    labels = checks.check_labels(target, x.shape[:1], x, "target", "x")
    _check_classes_argument(num_classes, label_gram, True)
    if num_classes is not None:
        checks.check_label_range(labels, num_classes, "target")
    if label_gram == "equal" or num_classes is None:
        return labels, None, 1.0, 0.0
    # One class: its centred one-hot row is zero, and similar to nothing.
    return labels, None, *((1.0, -1.0 / (num_classes - 1)) if num_classes > 1 else (0.0, 0.0))


def _prepare(
    x: Tensor,
    target: Tensor | str,
    num_classes: int | None,
    center: bool,
    label_gram: str,
    pool: PoolArgument,
    weight: Tensor | None,
) -> _GramCall:
    refuse_surrounding_weight("gram_loss")
    checks.check_float_tensor("x", x)
    checks.check_flag("center", center)
    if x.dim() < 2:
        raise ValueError(f"x: expected [B, ...] with at least 2 dimensions, got {tuple(x.shape)}")
    labels, vectors, same, other = _target(x, target, num_classes, label_gram)
    if weight is not None:
        weight = checks.check_weight(weight, x.shape[:1], x)
    pooling = pool_in_front("x", x, pool)
    rows = _flat(x) if pooling is None else pooling.latents
    if vectors is not None and pooling is not None:
        vectors = beside_pooled(vectors, rows, pooling.widened)
    backend = select(rows.device.type, rows.dtype, "gram_loss")
    options = (same, other, center)
    return _GramCall(rows, labels, vectors, weight, backend, options, pooling, x.shape)


def gram_loss(
    x: Tensor,
    target: Tensor | str,
    *,
    num_classes: int | None = None,
    center: bool = True,
    label_gram: str = "centered",
    pool: PoolArgument = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Mean squared gap between the cosine Gram matrix of a batch and a target Gram.

    S_ij is the cosine of the angle between samples i and j, each minus its own mean over features
    if `center`. A row's loss is the mean over j of (S_ij - T_ij)^2, so ``"batchmean"`` is the mean
    over all pairs: the similarity-matching loss of Nokland and Eidnes (2019) with the defaults
    (docs/method.md section 9). Neither S nor T is ever in memory. A row of zeros (a constant one
    if `center`) is similar to nothing, itself included, and has gradient 0.

    Args:
        x: [B, ...], flattened to one vector per sample.
        target: integer labels [B]; ``"identity"`` (all other samples repelled); or vectors
            [B, ...] whose own Gram, made like that of x, is the target, held constant.
        num_classes: number of classes, for labels with ``label_gram="centered"``.
        center: subtract from every sample its mean over features; same for target vectors.
        label_gram: ``"centered"``: the Gram of centred one-hot rows, 1 for equal labels and
            -1 / (num_classes - 1) for others, which the similarity-matching literature uses (0
            for a single class); ``"equal"``: 1 for equal labels, 0 for others.
        pool: None, or (kind, g) to pool a map first.
        weight: constant factor per row, [B].
        reduction: none, sum or batchmean.

    Returns:
        The loss: [B] for ``"none"``, else 0-dim.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    call = _prepare(x, target, num_classes, center, label_gram, pool, weight)
    arguments = (call.x, call.labels, call.vectors, call.weight)
    value: Tensor
    if torch.is_grad_enabled() and call.x.requires_grad:
        value = GramLoss.apply(*arguments, call.backend, *call.options, reduction)
    else:
        value = op(call.backend, "gram_loss")(*arguments, *call.options, reduction)
    return value


@torch.no_grad()
def gram_loss_value_and_grad(
    x: Tensor,
    target: Tensor | str,
    *,
    num_classes: int | None = None,
    center: bool = True,
    label_gram: str = "centered",
    pool: PoolArgument = None,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("x",),
    compact_grad: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`gram_loss` and its gradient, keeping no graph.

    Args:
        x: as in `gram_loss`, like every argument up to `reduction`.
        target: see there.
        num_classes: see there.
        center: see there.
        label_gram: see there.
        pool: see there.
        weight: see there.
        reduction: see there.
        wrt: which gradients: ``"x"``, or none.
        compact_grad: with mean pooling, return the gradient of the cells [B, C, g, g].

    Returns:
        The value and the gradients in the order of `wrt`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    checks.check_wrt(wrt, ("x",), pool, compact_grad)
    call = _prepare(x, target, num_classes, center, label_gram, pool, weight)
    arguments = (call.x, call.labels, call.vectors, call.weight, *call.options, reduction)
    if not wrt:
        return op(call.backend, "gram_loss")(*arguments), ()
    value, grad = op(call.backend, "gram_loss_value_and_grad")(*arguments)
    return value, (call.restore(grad, compact_grad),)
