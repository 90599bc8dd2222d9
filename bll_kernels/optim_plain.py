"""A step of an optimiser in plain tensor operations, for a compiler to fuse with what is around it.

Source: Kingma and Ba 2015 (Adam), Loshchilov and Hutter 2019 (decoupled decay). Within rounding the
results are those of `bll_kernels.optim`.
"""

from __future__ import annotations

import math
from typing import Any, Final

from torch import Tensor

#: Numbers of one step, see `adam_rates`.
RATES: Final = 7


def adam_(
    parameter: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    rates: Tensor,
    *,
    decay: str | None,
) -> None:
    """One step of Adam in plain operations, for a compiler; written to the tensors given.

    Args:
        parameter: Any shape.
        gradient: Of that shape.
        first: The moving mean of gradients.
        second: That of their squares.
        rates: What `adam_rates` gives.
        decay: "decoupled" (AdamW), "coupled" (in the gradient), or None.
    """
    rise, keep, grow, _, _, _, weight_decay = rates.unbind()
    if decay == "coupled":
        gradient = gradient + weight_decay * parameter
    first.add_((gradient - first) * rise)
    second.copy_(second * keep + gradient * gradient * grow)
    adam_move_(parameter, first, second, rates, decay=decay)


def adam_move_(
    parameter: Tensor, first: Tensor, second: Tensor, rates: Tensor, *, decay: str | None
) -> None:
    """What a step of Adam does to a parameter when the moments are those of the step.

    Args:
        parameter: As in `adam_`.
        first: Written already.
        second: Written already.
        rates: As in `adam_`.
        decay: As in `adam_`.
    """
    _, _, _, size, unbias, eps, weight_decay = rates.unbind()
    if decay == "decoupled":
        parameter.sub_(parameter * weight_decay)
    parameter.sub_(size * first / (second.sqrt() * unbias + eps))


def adam_rates(group: dict[str, Any], step: int) -> tuple[float, ...]:
    """The numbers of one step of Adam.

    Args:
        group: Options of a group of `BlockAdam`.
        step: Number of the step, from 1.

    Returns:
        1 - beta1, beta2, 1 - beta2, learning rate over the first bias correction, 1 over the root
        of the second, eps, and the decay (times the learning rate where it is decoupled).
    """
    beta1, beta2 = group["betas"]
    rate, decay = float(group["lr"]), group["weight_decay"]
    return (
        1 - beta1,
        beta2,
        1 - beta2,
        rate / (1 - beta1**step),
        1 / math.sqrt(1 - beta2**step),
        group["eps"],
        rate * decay if group["decoupled_weight_decay"] else decay,
    )


def adam_decay(group: dict[str, Any]) -> str | None:
    """How parameters of a group decay: "decoupled", "coupled", or None."""
    if not group["weight_decay"]:
        return None
    return "decoupled" if group["decoupled_weight_decay"] else "coupled"
