"""The kernels that a block's step goes through: our own on CUDA, torch's fused ones elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bll_kernels.backends.selection import optimizer_backend
from bll_kernels.ops import op


class Lists:
    """What the kernel of one group takes beside the gradients.

    Attributes:
        missing: Places in the group of the parameters that are left out.
    """

    missing: tuple[int, ...] = ()

    def __init__(self, parameters: list[Tensor], states: list[dict[str, Any]]) -> None:
        self.parameters = parameters
        self.first = [state["exp_avg"] for state in states if "exp_avg" in state]
        self.second = [state["exp_avg_sq"] for state in states if "exp_avg_sq" in state]
        self.momentum = [state["momentum_buffer"] for state in states if "momentum_buffer" in state]
        # One tensor behind all the counters, so that one operation counts for all.
        # A state that was loaded has them on whatever device and in whatever form it was saved.
        counters = [
            torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device)
            for parameter, state in zip(parameters, states, strict=True)
            if "step" in state
        ]
        self.counters = torch.stack(counters) if counters else torch.empty(0)
        self.steps = list(self.counters.unbind())
        for state, step in zip(states, self.steps, strict=False):
            state["step"] = step
        self.backend = _backend([*parameters, *self.first, *self.second, *self.momentum])
        if self.backend is not None:
            self.ticket = torch.zeros(1, dtype=torch.int32, device=parameters[0].device)

    def part(self, start: int, stop: int) -> Lists:
        """Some of the parameters in a row, with the counters they have here."""
        found = copy.copy(self)
        found.parameters = self.parameters[start:stop]
        found.first, found.second = self.first[start:stop], self.second[start:stop]
        found.momentum = self.momentum[start:stop]
        found.counters, found.steps = self.counters[start:stop], self.steps[start:stop]
        return found


def _dense(x: Tensor) -> bool:
    """Whether the elements of a tensor lie together, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def _backend(tensors: list[Tensor]) -> str | None:
    """Backend whose kernels step these tensors; None: torch's."""
    found = {optimizer_backend(x.device.type, x.dtype) for x in tensors}
    one_device = len({x.device for x in tensors}) == 1
    return found.pop() if len(found) == 1 and one_device and all(map(_dense, tensors)) else None


def _laid_out(gradients: list[Tensor], parameters: list[Tensor]) -> list[Tensor]:
    """Gradients in the dtype and strides of their parameters."""
    return [
        g if g.stride() == p.stride() and g.dtype == p.dtype else torch.empty_like(p).copy_(g)
        for g, p in zip(gradients, parameters, strict=True)
    ]


def _rate(lr: float | Tensor, like: Tensor) -> tuple[Tensor | None, float]:
    """A learning rate in device memory, or the number."""
    if not isinstance(lr, Tensor):
        return None, float(lr)
    return lr.to(device=like.device, dtype=torch.float32, non_blocking=True), 0.0


def adam(
    lists: Lists,
    gradients: list[Tensor],
    group: dict[str, Any],
    inverse_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of Adam or AdamW over a group."""
    beta1, beta2 = group["betas"]
    if lists.backend is not None:
        rate, lr = _rate(group["lr"], lists.parameters[0])
        op(lists.backend, "block_adam_")(
            lists.parameters, _laid_out(gradients, lists.parameters), lists.first, lists.second,
            lists.counters, lists.ticket, rate, inverse_scale, found_inf, lr, beta1, beta2,
            group["eps"], group["weight_decay"], group["decoupled_weight_decay"],
        )  # fmt: skip
        return
    _unscale(gradients, inverse_scale, found_inf)
    lists.counters.add_(1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    kernel(
        lists.parameters,
        gradients,
        lists.first,
        lists.second,
        [],
        lists.steps,
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        amsgrad=False,
        maximize=False,
        grad_scale=None,
        found_inf=found_inf,
    )
    if found_inf is not None:
        lists.counters.sub_(found_inf)


def sgd(
    lists: Lists,
    gradients: list[Tensor],
    group: dict[str, Any],
    inverse_scale: Tensor | None,
    found_inf: Tensor | None,
) -> None:
    """One step of stochastic gradient descent over a group."""
    if lists.backend is not None:
        rate, lr = _rate(group["lr"], lists.parameters[0])
        op(lists.backend, "block_sgd_")(
            lists.parameters, _laid_out(gradients, lists.parameters), lists.momentum, rate,
            inverse_scale, found_inf, lr, group["momentum"], group["weight_decay"],
            group["nesterov"],
        )  # fmt: skip
        return
    _unscale(gradients, inverse_scale, found_inf)
    torch._fused_sgd_(
        lists.parameters,
        gradients,
        lists.momentum,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=0.0,
        nesterov=group["nesterov"],
        maximize=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=found_inf,
    )


def _unscale(
    gradients: list[Tensor], inverse_scale: Tensor | None, found_inf: Tensor | None
) -> None:
    if inverse_scale is not None and found_inf is not None:
        torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, inverse_scale)


def check_gradients(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> None:
    """Refuse what the kernels would read past its end, or in another order."""
    if len(gradients) != len(parameters):
        raise ValueError(
            f"gradients: expected {len(parameters)}, one for each parameter of the group, got "
            f"{len(gradients)}"
        )
    for at, (g, p) in enumerate(zip(gradients, parameters, strict=True)):
        if g is None or (g.shape == p.shape and g.stride() == p.stride() and g.dtype == p.dtype):
            continue
        raise ValueError(
            f"gradients: expected number {at} to be {p.dtype} {list(p.shape)} with strides "
            f"{p.stride()}, as its parameter, got {g.dtype} {list(g.shape)} with {g.stride()}"
        )
