"""Losses between a row of alpha and a row of beta: `posterior_kl`, `evidence_loss`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bll_kernels.autograd import PairLoss
from bll_kernels.families import Family
from bll_kernels.functional import checks
from bll_kernels.functional.calls import PairCall, PoolArgument, prepare_pair
from bll_kernels.ops import op
from bll_kernels.spec import STOPPED_LOSSES, pair_loss_name


def _value(call: PairCall, loss: str, reduction: str) -> Tensor:
    tensors = (call.a, call.b, call.labels, call.weight)
    options = call.options(loss, reduction)
    learns_b = call.b.requires_grad and loss not in STOPPED_LOSSES
    value: Tensor
    if torch.is_grad_enabled() and (call.a.requires_grad or learns_b):
        value = PairLoss.apply(*tensors, call.backend, *options)
    else:
        with torch.no_grad():
            value = op(call.backend, "pair_loss")(*tensors, *options)
    return value


def _posterior_loss(direction: str, stop_posterior: bool, reduction: str) -> str:
    checks.check_direction(direction)
    checks.check_flag("stop_posterior", stop_posterior)
    checks.check_reduction(reduction)
    return pair_loss_name(direction, stop_posterior)


@torch.no_grad()
def _value_and_grad(
    call: PairCall, loss: str, reduction: str, wrt: Sequence[str], compact: bool
) -> tuple[Tensor, tuple[Tensor, ...]]:
    value, grad_a, grad_b = op(call.backend, "pair_loss_value_and_grad")(
        call.a, call.b, call.labels, call.weight, *call.options(loss, reduction),
        "a" in wrt, "b" in wrt,
    )  # fmt: skip
    grads = {}
    if "a" in wrt:
        grads["a"] = call.restore_a(grad_a, compact)
    if "b" in wrt:
        grads["b"] = call.restore_b(grad_b)
    return value, tuple(grads[name] for name in wrt)


def posterior_kl(
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
) -> Tensor:
    """KL divergence between the posterior rho and the forward message alpha.

    Args:
        a: parameters of alpha, [*batch, D] ([*batch, 2, D] for ``gaussian-diagonal``).
        b: parameters of beta: shape of `a`, or broadcastable, or with `labels` a class table
            [classes, (2,) D] that is gathered inside the kernel.
        family: name or `Family`.
        labels: integer labels [*batch] of the rows of the class table.
        stop_posterior: hold rho constant (the BLL update, docs/method.md section 2). Then `b`
            gets no gradient. False gives the full gradient; the fixed-variance ``gaussian``
            has none to `a` then.
        direction: ``"rho_alpha"`` for KL(rho || alpha), ``"alpha_rho"`` for the reverse.
        pool: None, or (kind, g) to pool a map first.
        tilt: power of beta.
        weight: constant factor per row, [*batch].
        reduction: none, sum or batchmean.

    Returns:
        The loss: [*batch] for ``"none"``, else 0-dim.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    loss = _posterior_loss(direction, stop_posterior, reduction)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value(call, loss, reduction)


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
) -> tuple[Tensor, tuple[Tensor, ...]]:
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

    Returns:
        The value and the gradients in the order of `wrt`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_wrt(wrt, ("a", "b"), pool, compact_grad)
    loss = _posterior_loss(direction, stop_posterior, reduction)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value_and_grad(call, loss, reduction, wrt, compact_grad)


def evidence_loss(
    a: Tensor,
    b: Tensor,
    family: str | Family,
    *,
    labels: Tensor | None = None,
    pool: PoolArgument = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Local evidence loss -log E_alpha[beta]; its gradient to `a` is that of the stopped KL.

    For families with natural-parameter messages beta is the bare tilt exp(b . T(z)), so the loss
    is -[A(a + b) - A(a)]; for the Gaussian families with a precision beta is a density over z.

    Args:
        a: parameters of alpha, [*batch, D] ([*batch, 2, D] for ``gaussian-diagonal``).
        b: parameters of beta, as in `posterior_kl`.
        family: name or `Family`.
        labels: integer labels [*batch] of the rows of a class table `b`.
        pool: None, or (kind, g) to pool a map first.
        tilt: power of beta.
        weight: constant factor per row, [*batch].
        reduction: none, sum or batchmean.

    Returns:
        The loss: [*batch] for ``"none"``, else 0-dim.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value(call, "evidence", reduction)


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
) -> tuple[Tensor, tuple[Tensor, ...]]:
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

    Returns:
        The value and the gradients in the order of `wrt`.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an argument of the wrong shape, device or value.
    """
    checks.check_reduction(reduction)
    checks.check_wrt(wrt, ("a", "b"), pool, compact_grad)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value_and_grad(call, "evidence", reduction, wrt, compact_grad)
