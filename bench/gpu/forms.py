"""How a computation can be run beside ours: eager, compiled, and by other libraries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

Values = tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]
#: A form of the computation: value first, then the gradients.
Form = Callable[[Inputs], Values]

#: torch.compile's modes beside the default. The first and the last replay CUDA graphs.
MODES: Final = ("reduce-overhead", "max-autotune-no-cudagraphs", "max-autotune")


def differentiated(value: Callable[..., Tensor], wanted: int) -> Form:
    """Autograd's form: gradients of ``value`` to the first ``wanted`` inputs."""

    def form(inputs: Inputs) -> Values:
        leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
        result = value(*leaves, *inputs[wanted:])
        return (result.detach(), *torch.autograd.grad(result, leaves))

    return form


def compiled(value: Callable[..., Tensor], wanted: int, mode: str | None) -> Form:
    return differentiated(torch.compile(value, dynamic=False, mode=mode), wanted)


def every_form(
    value: Callable[..., Tensor], wanted: int, more: dict[str, Form] | None = None
) -> dict[str, Form]:
    eager = differentiated(value, wanted)
    forms = {"eager": eager, "compile": compiled(value, wanted, None)}
    for mode in MODES:
        forms[f"compile {mode}"] = compiled(value, wanted, mode)
    return {**forms, **(more or {})}


def liger_cross_entropy() -> Form:
    """Liger's fused linear cross-entropy; raises ImportError when run where it is not installed."""

    def form(inputs: Inputs) -> Values:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        loss = LigerFusedLinearCrossEntropyLoss()
        x, weight = (t.detach().requires_grad_() for t in inputs[:2])
        value = loss(weight, x, inputs[2])
        return (value.detach(), *torch.autograd.grad(value, (x, weight)))

    return form
