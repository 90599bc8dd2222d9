"""Inputs for gram_loss and class_means, their float64 truth by autograd, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
import torch.nn.functional as F
from class_cases import CLASS_FLOOR
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import bll_kernels as bk


def cosine_gram(x: Tensor, center: bool) -> Tensor:
    """S, with rows that have no direction similar to nothing."""
    x = x.flatten(1)
    if not x.shape[1]:
        return x @ x.t()
    constant = (x == (x[:, :1] if center else 0)).all(1, keepdim=True)
    if center:
        x = x - x.mean(1, keepdim=True)
    norm = torch.where(constant, 1, x).norm(dim=1, keepdim=True)
    unit = torch.where(constant, 0, x / norm)
    return unit @ unit.t()


def target_gram(case: GramCase) -> Tensor:
    """T from its definition: one-hot rows, the identity, or the vectors' own Gram."""
    if isinstance(case.target, str):
        return torch.eye(case.x.shape[0]).double()
    if case.target.is_floating_point():
        return cosine_gram(case.target.detach().double(), case.center)
    classes = case.num_classes or int(case.target.max()) + 1 if case.target.numel() else 1
    rows = F.one_hot(case.target.long(), classes).double()
    return cosine_gram(rows, case.label_gram == "centered")


@dataclass(frozen=True)
class GramCase:
    """Arguments of gram_loss."""

    x: Tensor
    target: Tensor | str
    num_classes: int | None = None
    center: bool = True
    label_gram: str = "centered"
    pool: tuple[str, int] | None = None
    weight: Tensor | None = None
    reduction: str = "batchmean"

    def with_options(self, **changes: Any) -> GramCase:
        return replace(self, **changes)

    def call(self, twin: bool, x: Tensor, **extra: Any) -> Any:
        f = bk.gram_loss_value_and_grad if twin else bk.gram_loss
        names = ("num_classes", "center", "label_gram", "pool", "weight", "reduction")
        return f(x, self.target, **{name: getattr(self, name) for name in names}, **extra)

    def oracle(self, x: Tensor) -> Tensor:
        rows = oracle.grid_pool(x, *self.pool) if self.pool else x
        gap = cosine_gram(rows, self.center) - target_gram(self)
        values = gap.square().sum(1) / max(len(gap), 1)
        if self.weight is not None:
            values = values * self.weight.double()
        if self.reduction == "none":
            return values
        return values.sum() / (max(len(gap), 1) if self.reduction == "batchmean" else 1)


def _scales(case: GramCase, x: Tensor) -> tuple[float, Tensor | float]:
    """Sizes of the terms behind the value and behind each row's gradient."""
    rows = oracle.grid_pool(x, *case.pool) if case.pool else x.flatten(1)
    count = max(len(rows), 1)
    each = 1.0 if case.weight is None else max([1e-3, *case.weight.abs().tolist()])
    each /= count if case.reduction == "batchmean" else 1
    value = 4 * each * (1 if case.reduction == "none" else count)
    if not rows.numel():
        return value, 1.0
    centred = rows - rows.mean(1, keepdim=True) if case.center else rows
    norm = centred.norm(dim=1)
    slope = torch.where(norm == 0, 0, 16 * each / torch.where(norm == 0, 1, norm))
    if case.pool:  # a pixel of a std cell may move it more than one of a mean cell
        slope = slope * 2
    return value, slope.reshape(-1, *(1,) * (x.dim() - 1))


def check_gram(case: GramCase) -> None:
    """Twin, plain call and backward all give the oracle's results, and no input changes."""
    dtype = case.x.dtype
    truth = case.x.detach().double().requires_grad_()
    want = case.oracle(truth)
    (want_grad,) = torch.autograd.grad(want.sum(), truth, materialize_grads=True)
    value_scale, grad_scale = _scales(case, truth.detach())
    floor = CLASS_FLOOR[dtype]
    before = case.x.clone()

    def check_value(value: Tensor) -> None:
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(value, want.detach(), dtype=dtype, scale=value_scale, floor=floor)

    def check_grad(grad: Tensor) -> None:
        assert grad.dtype == dtype
        assert_close(grad, want_grad, dtype=dtype, scale=grad_scale, floor=floor)

    value, (grad,) = case.call(True, case.x)
    check_value(value)
    check_grad(grad)
    check_value(case.call(False, case.x))
    leaf = case.x.detach().requires_grad_()
    value = case.call(False, leaf)
    check_value(value.detach())
    check_grad(torch.autograd.grad(value.sum(), leaf, materialize_grads=True)[0])
    assert_same_bits(case.x, before)


def make_gram(
    *,
    batch: int = 9,
    inner: tuple[int, ...] = (12,),
    dtype: torch.dtype = torch.float32,
    classes: int = 4,
    seed: int = 0,
    **options: Any,
) -> GramCase:
    """Random rows with class labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((batch, *inner), generator=generator).to(dtype)
    labels = torch.randint(classes, (batch,), generator=generator)
    return GramCase(x, labels, classes, **options)


def check_means(x: Tensor, labels: Tensor, classes: int, pool: tuple[str, int] | None) -> None:
    """Means, counts and gradient against a one-hot product in float64."""
    truth = x.detach().double().requires_grad_()
    rows = oracle.grid_pool(truth, *pool) if pool else truth
    one_hot = F.one_hot(labels.long(), classes).double()
    want = (one_hot.t() @ rows.flatten(1)) if rows.dim() > 1 else one_hot.t() @ rows
    sizes = one_hot.sum(0)
    want = want.reshape(classes, *rows.shape[1:])
    want = want / sizes.clamp_min(1).reshape(-1, *(1,) * (want.dim() - 1))
    up = torch.randn(want.shape)
    (want_grad,) = torch.autograd.grad(want, truth, up.double(), materialize_grads=True)

    leaf = x.detach().requires_grad_()
    for means, counts in (
        bk.class_means(x, labels, classes, pool=pool),
        bk.class_means(leaf, labels, classes, pool=pool),
    ):
        assert means.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
        assert counts.dtype == torch.int64 and torch.equal(counts.double(), sizes)
        scale = x.double().abs().max().item() + 1e-30 if x.numel() else 1.0
        assert_close(means.detach(), want.detach(), dtype=x.dtype, scale=scale, floor=None)
        assert (means[counts == 0] == 0).all()
    (grad,) = torch.autograd.grad(means, leaf, up.to(means.dtype), materialize_grads=True)
    assert grad.dtype == x.dtype
    assert_close(grad, want_grad, dtype=x.dtype, scale=up.abs().max() if up.numel() else 1.0)


def gram_samples() -> list[tuple[str, tuple[Any, ...]]]:
    """Twenty argument lists for every op of this file."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for i in range(20):
        dtype = (torch.float32, torch.bfloat16, torch.float64, torch.float16)[i // 5]
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        batch, width = (5, 0, 1, 37, 3)[i % 5], (12, 4, 1, 7, 0)[i % 5 - i // 5]
        x, labels = torch.randn(batch, width).to(dtype), torch.randint(3, (batch,))
        vectors = torch.randn(batch, 5).to(dtype) if i % 3 == 0 else None
        weight = torch.rand(batch, dtype=accumulate) if i % 2 else None
        reduction = ("none", "sum", "batchmean")[i % 3 - i // 10]
        grad = torch.randn((batch,) if reduction == "none" else (), dtype=accumulate)
        gram = (x, None if vectors is not None else labels, vectors, weight, 1.0, -0.5)
        gram = (*gram, i % 4 < 2, reduction)
        found.append(("gram_loss", gram))
        found.append(("gram_loss_backward", (grad, *gram)))
        found.append(("gram_loss_value_and_grad", gram))
        found.append(("class_means", (x, labels, 4)))
        up, counts = torch.randn(4, width, dtype=accumulate), torch.bincount(labels, minlength=4)
        found.append(("class_means_backward", (up, labels, counts)))
    return found
