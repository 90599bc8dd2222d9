"""Losses between a row of alpha and a row of beta: `posterior_kl`, `evidence_loss`."""

from __future__ import annotations

import torch
from torch import Tensor

from bll_kernels.autograd import PairLoss
from bll_kernels.families import Family
from bll_kernels.functional import checks
from bll_kernels.functional.calls import PairCall, prepare_pair
from bll_kernels.functional.pooling import PoolArgument
from bll_kernels.ops import op
from bll_kernels.spec import STOPPED_LOSSES, pair_loss_name


def _value(call: PairCall, loss: str, reduction: str) -> Tensor:
    tensors = (call.a, call.b, call.labels, call.weight)
    options = call.options(loss, reduction)
    learns_b = call.b.requires_grad and loss not in STOPPED_LOSSES
    value: Tensor
    if torch.is_grad_enabled() and (call.a.requires_grad or learns_b):
        value = call.run(PairLoss.apply, *tensors, call.backend, *options)
    else:
        with torch.no_grad():
            value = call.run(op(call.backend, "pair_loss"), *tensors, *options)
    return value


def posterior_loss(direction: str, stop_posterior: bool, reduction: str) -> str:
    """The op's name of the loss that `posterior_kl` is asked for, after checks."""
    checks.check_direction(direction)
    checks.check_flag("stop_posterior", stop_posterior)
    checks.check_reduction(reduction)
    return pair_loss_name(direction, stop_posterior)


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
    loss = posterior_loss(direction, stop_posterior, reduction)
    call = prepare_pair(a, b, family, labels, pool, tilt, weight)
    return _value(call, loss, reduction)


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
