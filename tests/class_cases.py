"""Inputs for class_evidence_loss, linear_cross_entropy and grid_pool, and their checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
from cases import package_family, random_natural
from oracle import OracleFamily
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import bll_kernels as bk

#: Error of a class loss relative to the size of what enters it: scores decide probabilities.
CLASS_FLOOR = {
    torch.float64: 1e-12,
    torch.float32: 2e-6,
    torch.bfloat16: 2e-6,
    torch.float16: 2e-6,
}


@dataclass(frozen=True)
class ClassCase:
    """Arguments of class_evidence_loss; ``family=None`` means linear_cross_entropy."""

    family: OracleFamily | None
    a: Tensor
    table: Tensor
    labels: Tensor
    bias: Tensor | None = None
    weight: Tensor | None = None
    normalize_message: bool = False
    tilt: float = 1.0
    reduction: str = "batchmean"
    pool: tuple[str, int] | None = None

    def with_options(self, **changes: Any) -> ClassCase:
        return replace(self, **changes)

    @property
    def names(self) -> tuple[str, ...]:
        names = ("x", "weight") if self.family is None else ("a", "table")
        return names if self.bias is None else (*names, "bias")

    def operands(self) -> list[Tensor]:
        return [x for x in (self.a, self.table, self.bias) if x is not None]

    def call(self, twin: bool, operands: list[Tensor], **extra: Any) -> Any:
        a, table, *bias = operands
        options = {"bias": bias[0] if bias else None, "reduction": self.reduction}
        options |= {"pool": self.pool, **extra}
        if self.family is None:
            options["sample_weight"] = self.weight
            f = bk.linear_cross_entropy_value_and_grad if twin else bk.linear_cross_entropy
            return f(a, table, self.labels, **options)
        options |= {"weight": self.weight, "tilt": self.tilt}
        options["normalize_message"] = self.normalize_message
        f = bk.class_evidence_loss_value_and_grad if twin else bk.class_evidence_loss
        return f(a, table, self.labels, package_family(self.family), **options)

    def oracle(self, operands: list[Tensor]) -> Tensor:
        a, table, *bias = operands
        options = {"bias": bias[0] if bias else None, "reduction": self.reduction}
        options["pool"] = self.pool
        weight = None if self.weight is None else self.weight.double()
        if self.family is None:
            return oracle.linear_cross_entropy(
                a, table, self.labels, sample_weight=weight, **options
            )
        options |= {"weight": weight, "tilt": self.tilt}
        options["normalize_message"] = self.normalize_message
        return oracle.class_loss(a, table, self.labels, self.family, **options)


def _sizes(case: ClassCase, operands: list[Tensor]) -> tuple[Tensor, list[Tensor | float]]:
    """Size behind the value and behind each gradient: scores, residuals, and slopes."""
    a, table, *bias = (x.detach() for x in operands)
    latents = oracle.grid_pool(a, *case.pool) if case.pool else a
    if not latents.numel() or not table.numel():
        return torch.tensor(1.0).double(), [1.0] * len(operands)
    family = case.family or OracleFamily("gaussian")
    extra = bias[0] if bias else None
    size = 1.0
    for normalize in (False, True):  # the message's log-norm is a term of its own
        scores = oracle.class_scores(latents, table, family, extra, normalize, case.tilt)
        size += scores.abs().max().item()
    rows = max(scores[..., 0].numel(), 1)
    weight = torch.ones(()) if case.weight is None else case.weight.double().abs()
    each = weight.max().item() / (rows if case.reduction == "batchmean" else 1)
    slope = 1 + max(latents.abs().max().item(), table.abs().max().item(), 0.0)
    slope *= max(1.0, abs(case.tilt), family.tau) * (8.0 if family.planes == 2 else 1.0)
    value = size * each * (1 if case.reduction == "none" else rows)
    grads: list[Tensor | float] = [size * each * slope, size * each * slope * rows]
    return torch.tensor(value).double(), grads + [size * each * rows] * len(bias)


def check_class(case: ClassCase) -> None:
    """Twin, plain call and backward all give the oracle's results, and no input changes."""
    dtype = case.a.dtype
    truth = [x.detach().double().requires_grad_() for x in case.operands()]
    want = case.oracle(truth)
    want_grads = torch.autograd.grad(want.sum(), truth, materialize_grads=True)
    value_size, grad_sizes = _sizes(case, truth)
    floor = CLASS_FLOOR[dtype]
    before = [x.clone() for x in (*case.operands(), case.labels)]

    def check_value(value: Tensor) -> None:
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(value, want.detach(), dtype=dtype, scale=value_size, floor=floor)

    def check_grads(grads: tuple[Tensor, ...]) -> None:
        for got, wanted, size, operand in zip(
            grads, want_grads, grad_sizes, case.operands(), strict=True
        ):
            assert got.dtype == operand.dtype
            assert_close(got, wanted, dtype=dtype, scale=size, floor=floor)

    value, grads = case.call(True, case.operands(), wrt=case.names)
    check_value(value)
    check_grads(grads)
    check_value(case.call(False, case.operands()))

    leaves = [x.detach().requires_grad_() for x in case.operands()]
    value = case.call(False, leaves)
    check_value(value.detach())
    check_grads(torch.autograd.grad(value.sum(), leaves, materialize_grads=True))
    for old, new in zip(before, (*case.operands(), case.labels), strict=True):
        assert_same_bits(new, old)


def make_class(
    name: str | None,
    *,
    batch: tuple[int, ...] = (5,),
    width: int = 12,
    classes: int = 4,
    dtype: torch.dtype = torch.float32,
    scales: tuple[float, float] = (1.5, 0.7),
    seed: int = 0,
    **options: Any,
) -> ClassCase:
    """A dense case of moderate size; ``name=None`` for the linear read-out."""
    generator = torch.Generator().manual_seed(seed)
    group = 4 if name == "categorical" and width % 4 == 0 else None
    family = OracleFamily(name or "gaussian", tau=0.5, group=group)
    inner = (2, width) if family.planes == 2 else (width,)
    a = random_natural((*batch, *inner), family, scales[0], generator)
    table = random_natural((classes, *inner), family, scales[1], generator)
    labels = torch.randint(classes, batch, generator=generator)
    member = None if name is None else family
    return ClassCase(member, a.to(dtype), table.to(dtype), labels, **options)
