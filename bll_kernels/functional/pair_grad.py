"""The pair losses with their gradients, and the next block's input, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from bll_kernels.families import Family
from bll_kernels.functional import checks
from bll_kernels.functional.calls import PairCall, prepare_pair
from bll_kernels.functional.pair import posterior_loss
from bll_kernels.functional.pooling import PoolArgument
from bll_kernels.ops import op

NextInput = Literal["alpha", "rho"] | float
ValueAndGrads = tuple[Tensor, tuple[Tensor, ...]]
ValueGradsAndNext = tuple[Tensor, tuple[Tensor, ...], Tensor]


def _gradients(
    call: PairCall, grad_a: Tensor, grad_b: Tensor, wrt: Sequence[str], compact: bool
) -> tuple[Tensor, ...]:
    grads = {}
    if "a" in wrt:
        grads["a"] = call.restore_a(grad_a, compact)
    if "b" in wrt:
        grads["b"] = call.restore_b(grad_b)
    return tuple(grads[name] for name in wrt)


@torch.no_grad()
def _value_and_grad(
    call: PairCall,
    loss: str,
    reduction: str,
    wrt: Sequence[str],
    compact: bool,
    following: tuple[float, torch.dtype] | None,
) -> ValueAndGrads | ValueGradsAndNext:
    name = "pair_loss_value_and_grad" if following is None else "pair_loss_next"
    value, grad_a, grad_b, *mean = call.run(
        op(call.backend, name), call.a, call.b, call.labels, call.weight,
        *call.options(loss, reduction), "a" in wrt, "b" in wrt, *(following or ()),
    )  # fmt: skip
    grads = _gradients(call, grad_a, grad_b, wrt, compact)
    return (value, grads, mean[0]) if mean else (value, grads)


@overload
def posterior_kl_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    stop_posterior: bool = True,
    direction: str = "rho_alpha",
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: None = None,
    next_dtype: None = None,
) -> ValueAndGrads: ...


@overload
def posterior_kl_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    stop_posterior: bool = True,
    direction: str = "rho_alpha",
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: NextInput,
    next_dtype: torch.dtype | None = None,
) -> ValueGradsAndNext: ...


def posterior_kl_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    stop_posterior: bool = True,
    direction: str = "rho_alpha",
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: NextInput | None = None,
    next_dtype: torch.dtype | None = None,
) -> ValueAndGrads | ValueGradsAndNext:
    """`posterior_kl` and its gradients in one pass over memory.

    Args:
        a: as in `posterior_kl`, like every argument up to `reduction`.
        b: see there.
        family: see there.
        labels: see there.
        stop_posterior: see there; the gradient to `b` is zero then.
        direction: see there.
        pool: see there.
        tilt: see there.
        weight: see there.
        reduction: see there.
        wrt: which gradients, of ``"a"`` and ``"b"``.
        compact_grad: with mean pooling, return the gradient of the cells [B, C, g, g].
        next_input: the next block's input, written in the same pass: the mean of ``"alpha"``, of
            the posterior ``"rho"``, or with a number m in [0, 1] the mix (1 - m) mu(alpha) +
            m mu(rho) (docs/method.md). No gradient flows through it.
        next_dtype: its dtype, that of `a` unless given: float32, bfloat16, float16,
            float8_e4m3fn, or float64 beside a float64 `a`.

    Returns:
        The value and the gradients in the order of `wrt`; with `next_input` also the mean, of the
        latents' shape [*batch, D] after broadcasting and pooling.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_wrt(wrt, ("a", "b"), pool, compact_grad)
    loss = posterior_loss(direction, stop_posterior, reduction)
    following = checks.check_next(next_input, next_dtype, a)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value_and_grad(call, loss, reduction, wrt, compact_grad, following)


@overload
def evidence_loss_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: None = None,
    next_dtype: None = None,
) -> ValueAndGrads: ...


@overload
def evidence_loss_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: NextInput,
    next_dtype: torch.dtype | None = None,
) -> ValueGradsAndNext: ...


def evidence_loss_value_and_grad(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
    wrt: Sequence[str] = ("a",),
    compact_grad: bool = False,
    next_input: NextInput | None = None,
    next_dtype: torch.dtype | None = None,
) -> ValueAndGrads | ValueGradsAndNext:
    """`evidence_loss` and its gradients in one pass over memory.

    Args:
        a: as in `evidence_loss`, like every argument up to `reduction`.
        b: see there.
        family: see there.
        labels: see there.
        pool: see there.
        tilt: see there.
        weight: see there.
        reduction: see there.
        wrt: which gradients, of ``"a"`` and ``"b"``.
        compact_grad: with mean pooling, return the gradient of the cells [B, C, g, g].
        next_input: the next block's input, as in `posterior_kl_value_and_grad`.
        next_dtype: its dtype, see there.

    Returns:
        The value and the gradients in the order of `wrt`; with `next_input` also the mean, of the
        latents' shape [*batch, D] after broadcasting and pooling.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    checks.check_wrt(wrt, ("a", "b"), pool, compact_grad)
    following = checks.check_next(next_input, next_dtype, a)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value_and_grad(call, "evidence", reduction, wrt, compact_grad, following)
