"""From a user's arguments to an op call, and back: shapes and broadcasting.

A prepared call holds what the ops take, and how their gradients return to the shapes and dtypes
that the user gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bll_kernels.backends.selection import select
from bll_kernels.families import FORMULAS, NORMALISED_MESSAGES, Family, get_family
from bll_kernels.functional import checks
from bll_kernels.functional.pooling import (
    PoolArgument,
    Pooling,
    beside_pooled,
    fuse_pool,
    pool_in_front,
)
from bll_kernels.functional.weights import surrounding_weight


def _family_options(family: Family, a: Tensor) -> tuple[str, int, float]:
    return family.name, family.group or a.shape[-1], float(family.tau)


def _align(a: Tensor, b: Tensor, planes: int) -> tuple[Tensor, Tensor, Tensor | None]:
    """Broadcast `a` against `b`; a `b` with fewer rows becomes a table with computed labels."""
    if a.shape == b.shape:
        return a, b, None
    try:
        shape = torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        raise ValueError(
            f"b: expected a shape that broadcasts with a {tuple(a.shape)}, got {tuple(b.shape)}"
        ) from None
    a = a.expand(shape)
    batch, latents = shape[: len(shape) - planes], shape[len(shape) - planes :]
    lead = b.shape[: max(b.dim() - planes, 0)]
    rows = math.prod(lead)
    if rows == math.prod(batch):
        return a, b.expand(shape), None
    table = b.expand(*lead, *latents).reshape(rows, *latents)
    index = torch.arange(rows, device=b.device).reshape(lead).expand(batch)
    return a, table, index.contiguous()


class PairCall(NamedTuple):
    """Arguments of `pair_loss` up to `tilt`, without the loss."""

    a: Tensor
    b: Tensor
    labels: Tensor | None
    weight: Tensor | None
    backend: str
    family: tuple[str, int, float]
    tilt: float
    pooling: Pooling | None
    given_a: Tensor
    given_b: Tensor
    planes: int

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The op's results; a label out of range is refused as by `checks.check_label_range`."""
        return checks.run_checked(self.labels, self.b.shape[0], function, *arguments)

    def options(self, loss: str, reduction: str) -> tuple[Any, ...]:
        """The op's arguments behind the tensors."""
        return (*self.family, loss, self.tilt, reduction)

    def restore_a(self, grad: Tensor, compact: bool) -> Tensor:
        """Gradient of the op's `a` as a gradient of the user's."""
        if self.pooling is not None:
            latents = self.pooling.latents
            return self.pooling.restore(grad.sum_to_size(latents.shape), compact)
        return grad.sum_to_size(self.given_a.shape)

    def restore_b(self, grad: Tensor) -> Tensor:
        """Gradient of the op's `b` as a gradient of the user's."""
        given = self.given_b
        lead = given.shape[: max(given.dim() - self.planes, 0)]
        latents = grad.shape[grad.dim() - self.planes :]
        if grad.shape != given.shape and math.prod(lead) * math.prod(latents) == grad.numel():
            grad = grad.reshape(*lead, *latents)
        return grad.sum_to_size(given.shape).to(given.dtype)


def prepare_pair(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    labels: Tensor | None,
    pool: PoolArgument,
    tilt: float,
    weight: Tensor | None,
) -> PairCall:
    """Check and align the arguments that `posterior_kl` and `evidence_loss` share."""
    family = get_family(family)
    planes = FORMULAS[family.name].planes
    given_a, given_b = checks.check_float_tensor("a", a), checks.check_partner("b", b, a)
    tilt = checks.check_tilt(tilt, family)
    pooling = pool_in_front("a", a, pool, family)
    if pooling is not None:
        a = pooling.latents
        b = beside_pooled(b, a, pooling.widened)
    checks.check_latents("a", a, family, planes)
    batch = a.shape[: a.dim() - planes]
    if labels is None:
        a, b, labels = _align(a, b, planes)
        batch = a.shape[: a.dim() - planes]
        checks.check_latents("a and b", a, family, planes)
    else:
        expected = a.shape[a.dim() - planes :]
        if b.dim() != planes + 1 or b.shape[1:] != expected:
            raise ValueError(
                f"b: expected a class table of shape [classes, {', '.join(map(str, expected))}] "
                f"beside labels, got {tuple(b.shape)}"
            )
        labels = checks.check_labels(labels, batch, a)
    weight = surrounding_weight(batch) if weight is None else weight
    if weight is not None:
        weight = checks.check_weight(weight, batch, a)
    backend, options = select(a.device.type, a.dtype, "pair_loss"), _family_options(family, a)
    if labels is not None and backend not in checks.CHECK_LABELS:
        checks.check_label_range(labels, b.shape[0])
    return PairCall(a, b, labels, weight, backend, options, tilt, pooling, given_a, given_b, planes)


class ClassNames(NamedTuple):
    """What a class loss calls its arguments, for its error messages."""

    a: str = "a"
    table: str = "table"
    weight: str = "weight"


class ClassCall(NamedTuple):
    """Arguments of `class_loss` up to `tilt`."""

    a: Tensor
    table: Tensor
    labels: Tensor
    bias: Tensor | None
    weight: Tensor | None
    backend: str
    options: tuple[Any, ...]
    pooling: Pooling | None
    given_table: Tensor

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The op's results; a label out of range is refused as by `checks.check_label_range`."""
        return checks.run_checked(self.labels, self.table.shape[0], function, *arguments)

    def restore_a(self, grad: Tensor, compact: bool) -> Tensor:
        """Gradient of the op's `a` as a gradient of the user's."""
        return grad if self.pooling is None else self.pooling.restore(grad, compact)


def prepare_class(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    family: str | Family,
    bias: Tensor | None,
    normalize_message: bool,
    pool: PoolArgument,
    tilt: float,
    weight: Tensor | None,
    names: ClassNames,
    *,
    fuse: bool = False,
) -> ClassCall:
    """Check and align the arguments of `class_evidence_loss` and `linear_cross_entropy`.

    With `fuse`, a map is left to the kernel of the loss where that can pool it.
    """
    family = get_family(family)
    planes = FORMULAS[family.name].planes
    checks.check_float_tensor(names.a, a)
    given_table = checks.check_partner(names.table, table, a, names.a)
    checks.check_flag("normalize_message", normalize_message)
    if normalize_message and family.name in NORMALISED_MESSAGES:
        raise ValueError(
            f"normalize_message: messages of {family.name} are densities already, expected False"
        )
    tilt = checks.check_tilt(tilt, family)
    pooling = fuse_pool(names.a, a, pool, family, table) if fuse else None
    if pooling is None:
        pooling = pool_in_front(names.a, a, pool, family)
    if pooling is not None:
        a = pooling.latents
        table = beside_pooled(table, a, pooling.widened)
    checks.check_latents(names.a, a, family, planes)
    batch, latents = a.shape[: a.dim() - planes], a.shape[a.dim() - planes :]
    if table.dim() != planes + 1 or table.shape[1:] != latents or table.shape[0] == 0:
        raise ValueError(
            f"{names.table}: expected shape [classes, {', '.join(map(str, latents))}] with at "
            f"least one class, got {tuple(table.shape)}"
        )
    labels = checks.check_labels(labels, batch, a)
    if bias is not None:
        bias = checks.check_bias(bias, table.shape[0], a)
    weight = surrounding_weight(batch) if weight is None else weight
    if weight is not None:
        weight = checks.check_weight(weight, batch, a, names.weight)
    options = (*_family_options(family, a), normalize_message, tilt)
    if pooling is not None and pooling.fused:
        backend = pooling.backend
    else:
        backend = select(a.device.type, a.dtype, "class_loss", family.name, table.shape[0])
    if backend not in checks.CHECK_LABELS:
        checks.check_label_range(labels, table.shape[0])
    return ClassCall(a, table, labels, bias, weight, backend, options, pooling, given_table)
