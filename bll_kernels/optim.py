"""Optimisers whose step is one multi-tensor kernel per block, with little host work around it.

On the CPU the arithmetic is torch's own fused kernels, so the results are those of `torch.optim`
with ``fused=True`` to the last bit. On CUDA, where the compiled library is there, it is kernels of
our own: one launch updates a block, counts its steps on the device and unscales its gradients; the
results are the same within rounding. States can be exchanged with torch's optimisers either way.
What is saved is the host: the lists a kernel takes are built once, and a block can be stepped
alone, right behind its gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from bll_kernels import optim_kernels
from bll_kernels.optim_kernels import Lists

Params = Iterable[Tensor] | Iterable[dict[str, Any]]


class _BlockOptimizer(Optimizer, ABC):
    """Steps whole groups; a group is a block (`bll.param_groups`)."""

    def __init__(self, params: Params, defaults: dict[str, Any]) -> None:
        self._lists: dict[int, Lists] = {}
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as in `torch.optim.Optimizer`."""
        super().add_param_group(param_group)
        self._lists.clear()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, one of the optimiser of the same name in `torch.optim` included."""
        super().load_state_dict(state_dict)
        self._lists.clear()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lists = {}

    def __getstate__(self) -> dict[str, Any]:
        # Aliases of the state, built again where they are needed.
        return {k: v for k, v in super().__getstate__().items() if k != "_lists"}

    def _gather(
        self, index: int, gradients: Sequence[Tensor | None]
    ) -> tuple[Lists | None, list[Tensor]]:
        """What the kernel takes: the group's lists, and the gradients that are there."""
        given = [gradient for gradient in gradients if gradient is not None]
        if not given:
            return None, given
        missing: tuple[int, ...] = ()
        if len(given) < len(gradients):
            missing = tuple(at for at, gradient in enumerate(gradients) if gradient is None)
        lists = self._lists.get(index)
        # Lists of other parameters hold counters that are no longer those of the state.
        if lists is None or lists.missing != missing:
            parameters = self.param_groups[index]["params"]
            some = [p for p, g in zip(parameters, gradients, strict=True) if g is not None]
            lists = self._lists[index] = self._build(some, given, index)
            lists.missing = missing
        return lists, given

    def _build(self, parameters: list[Tensor], gradients: list[Tensor], index: int) -> Lists:
        for p, gradient in zip(parameters, gradients, strict=True):
            if gradient.layout != torch.strided:
                raise TypeError(f"gradient: expected a dense tensor, got {gradient.layout}")
            if not p.is_floating_point():
                raise TypeError(f"parameter: expected a floating dtype, got {p.dtype}")
        for p in parameters:
            if not self.state[p]:
                self._start(p, index)
        return Lists(parameters, [self.state[p] for p in parameters])

    @abstractmethod
    def _start(self, parameter: Tensor, index: int) -> None:
        """Make the state of a parameter."""

    @abstractmethod
    def _update(
        self,
        group: dict[str, Any],
        lists: Lists,
        gradients: list[Tensor],
        inverse_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        """Launch the kernel."""

    @torch.no_grad()
    def step_block(
        self,
        index: int,
        *,
        inverse_scale: Tensor | None = None,
        found_inf: Tensor | None = None,
    ) -> None:
        """Update one block from its gradients.

        Args:
            index: Group of the block.
            inverse_scale: 0-dim float32 tensor the gradients are multiplied by first; together
                with `found_inf`. What the gradients hold afterwards is not defined: torch's
                kernels scale them in place, ours in registers.
            found_inf: float32 tensor of one element on the block's device, set to 1 where a scaled
                gradient is not finite, and nothing is then updated, step counters included. It
                is not reset, so blocks can share one. Nothing is read back to the host.

        Raises:
            ValueError: only one of `inverse_scale` and `found_inf` is given.
            TypeError: a gradient is sparse, or a parameter is not of a floating dtype.
        """
        if (inverse_scale is None) != (found_inf is None):
            raise ValueError("inverse_scale, found_inf: expected both or neither")
        group = self.param_groups[index]
        lists, gradients = self._gather(index, [p.grad for p in group["params"]])
        if lists is not None:
            self._update(group, lists, gradients, inverse_scale, found_inf)

    def step_with(self, gradients: Sequence[Tensor | None], index: int = 0) -> None:
        """Update one block from gradients that are at hand, not from those of its parameters.

        Args:
            gradients: One for each parameter of the group, of its shape, strides and dtype, or
                None.
            index: Group of the block.

        Raises:
            ValueError: there are more or fewer, or one is unlike its parameter.
        """
        optim_kernels.check_gradients(gradients, self.param_groups[index]["params"])
        self.step_checked(gradients, index)

    def step_checked(self, gradients: Sequence[Tensor | None], index: int = 0) -> None:
        """As `step_with`, for gradients like ones that it has taken before; nothing is checked.

        Args:
            gradients: As there. What is unlike its parameter is read past its end, or in another
                order.
            index: Group of the block.
        """
        group = self.param_groups[index]
        lists, given = self._gather(index, gradients)
        if lists is None:
            return
        if torch.is_grad_enabled():
            with torch.no_grad():
                self._update(group, lists, given, None, None)
        else:
            self._update(group, lists, given, None, None)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every block, one kernel each.

        Args:
            closure: Computes the loss again, with gradients, as in `torch.optim`.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for index in range(len(self.param_groups)):
            self.step_block(index)
        return loss


class BlockAdam(_BlockOptimizer):
    """Adam, or AdamW with ``decoupled_weight_decay``; one kernel per block.

    Args:
        params: Parameters or groups, one group per block (`bll.param_groups`).
        lr: Learning rate, a number or a 0-dim tensor.
        betas: Decay rates of the two moments, in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Factor of the parameter added to its gradient, or, decoupled, of the
            parameter's own decay.
        decoupled_weight_decay: AdamW's form of the decay.

    Raises:
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled_weight_decay: bool = False,
    ) -> None:
        _check_range("lr", lr)
        _check_range("eps", eps)
        _check_range("weight_decay", weight_decay)
        for beta in betas:
            if not 0 <= beta < 1:
                raise ValueError(f"betas: expected numbers in [0, 1), got {betas}")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def _start(self, parameter: Tensor, index: int) -> None:
        state = self.state[parameter]
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)

    def _update(
        self,
        group: dict[str, Any],
        lists: Lists,
        gradients: list[Tensor],
        inverse_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        optim_kernels.adam(lists, gradients, group, inverse_scale, found_inf)


class BlockSGD(_BlockOptimizer):
    """Stochastic gradient descent with momentum; one kernel per block.

    Args:
        params: Parameters or groups, one group per block (`bll.param_groups`).
        lr: Learning rate, a number or a 0-dim tensor.
        momentum: Decay of the velocity, in [0, 1).
        weight_decay: Factor of the parameter added to its gradient.
        nesterov: Nesterov's form; needs a momentum.

    Raises:
        ValueError: a number is out of its range, or `nesterov` without momentum.
    """

    def __init__(
        self,
        params: Params,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        nesterov: bool = False,
    ) -> None:
        _check_range("lr", lr)
        _check_range("weight_decay", weight_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: expected a number in [0, 1), got {momentum}")
        if nesterov and momentum == 0:
            raise ValueError("nesterov: needs a momentum above 0")
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults)

    def _start(self, parameter: Tensor, index: int) -> None:
        # From zero, the velocity of the first step is the gradient: no first step to tell apart.
        state = self.state[parameter]
        if self.param_groups[index]["momentum"]:
            state["momentum_buffer"] = torch.zeros_like(
                parameter, memory_format=torch.preserve_format
            )

    def _update(
        self,
        group: dict[str, Any],
        lists: Lists,
        gradients: list[Tensor],
        inverse_scale: Tensor | None,
        found_inf: Tensor | None,
    ) -> None:
        optim_kernels.sgd(lists, gradients, group, inverse_scale, found_inf)


def _check_range(name: str, number: float | Tensor) -> None:
    if not isinstance(number, Tensor) and not number >= 0:
        raise ValueError(f"{name}: expected a number of at least 0, got {number}")
