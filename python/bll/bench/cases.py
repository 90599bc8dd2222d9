"""What is measured: one computation, its truth, its peers, and what it must move and compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Values = tuple[Tensor, ...]
Inputs = tuple[Tensor, ...]
#: A form of the computation: the value first, then the gradients.
Form = Callable[[Inputs], Values]

#: Largest relative L2 error that passes, of gradients of elementwise losses.
GATE = {torch.float64: 1e-12, torch.float32: 3e-7, torch.bfloat16: 2e-3, torch.float16: 3e-4}
#: The same for losses that sum over latents first.
SUMMED_GATE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
#: The same for the value of any loss: a sum, whose terms may cancel.
VALUE_GATE = 1e-3
_CHECKED_ROWS = 32


class Missing(Exception):
    """Why a peer cannot run here. It is reported as missing, never as beaten."""


@dataclass(frozen=True)
class Case:
    """One entry of a report.

    Attributes:
        name: Unique, says shape and dtype.
        make: Draws inputs from a generator, on its device. Never zeros or constants.
        ours: The form under test.
        peers: Other forms with the same inputs and outputs, by name; one may raise `Missing`.
        truth: The value, differentiable by autograd, for float64 inputs.
        wanted: How many leading inputs have gradients among the outputs.
        per_row: Positions of the inputs that have a row for every row of the first; none where rows
            depend on each other, which are then all checked.
        gate: Largest relative L2 error that passes.
        moved_bytes: Bytes the computation cannot avoid to read and write; 0 where not counted.
        matmul_flops: Multiplications and additions of its matrix products.
        special_functions: Exponentials, logarithms and divisions.
        dtype: Of the latents.
        config: What varies between the cases of a suite, as plain data.
    """

    name: str
    make: Callable[[torch.Generator], Inputs]
    ours: Form
    peers: Mapping[str, Form]
    truth: Callable[..., Tensor]
    wanted: int
    per_row: tuple[int, ...]
    gate: float
    moved_bytes: int = 0
    matmul_flops: int = 0
    special_functions: int = 0
    dtype: torch.dtype = torch.float32
    config: Mapping[str, Any] = field(default_factory=dict)

    def _head(self, inputs: Inputs) -> Inputs:
        return tuple(
            x[:_CHECKED_ROWS] if position in self.per_row else x
            for position, x in enumerate(inputs)
        )

    def _true_values(self, inputs: Inputs) -> Values:
        head = [x.detach().cpu() for x in self._head(inputs)]
        exact = [x.double() if x.is_floating_point() else x for x in head]
        leaves = [x.requires_grad_() for x in exact[: self.wanted]]
        value = self.truth(*exact)
        return (value.detach(), *torch.autograd.grad(value, leaves))

    def gradient_error(self, inputs: Inputs, outputs: Values) -> float:
        """Relative L2 error of the first gradient on the first rows, against float64."""
        wanted = self._true_values(inputs)[1]
        if 0 not in self.per_row:
            return relative_error(outputs[1], wanted)
        rows = len(inputs[0])
        # Losses are means over the batch: the head's is over fewer rows.
        share = min(_CHECKED_ROWS, rows) / rows
        return relative_error(outputs[1][:_CHECKED_ROWS], wanted * share)

    def error(self, inputs: Inputs, outputs: Values) -> float:
        """Largest error of our gradients: `outputs` on the first rows, and a call on these alone.

        The call on the first rows shows the value and the gradients that sum over rows. An output
        that is not finite everywhere, and a value beyond `VALUE_GATE`, count as infinitely wrong.
        """
        if not all(torch.isfinite(x).all() for x in outputs):
            return float("inf")
        value, *gradients = self.ours(self._head(inputs))
        true_value, *true = self._true_values(inputs)
        if relative_error(value, true_value) > VALUE_GATE:
            return float("inf")
        errors = [relative_error(x, y) for x, y in zip(gradients, true, strict=True)]
        return max(self.gradient_error(inputs, outputs), *errors)


def relative_error(got: Tensor, want: Tensor) -> float:
    """L2 norm of the difference over that of the truth; NaN counts as infinite."""
    error = ((got.detach().cpu().double() - want).norm() / want.norm()).item()
    return float("inf") if error != error else error


def differentiated(value: Callable[..., Tensor], wanted: int) -> Form:
    """The form that takes gradients of `value` to its first `wanted` inputs by autograd."""

    def form(inputs: Inputs) -> Values:
        leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
        result = value(*leaves, *inputs[wanted:])
        return (result.detach(), *torch.autograd.grad(result, leaves))

    return form


def compiled(value: Callable[..., Tensor], wanted: int, mode: str | None = None) -> Form:
    """`differentiated` with the value compiled at its first call."""
    ready: list[Form] = []

    def form(inputs: Inputs) -> Values:
        if not ready:
            ready.append(differentiated(torch.compile(value, dynamic=False, mode=mode), wanted))
        return ready[0](inputs)

    return form


def compiled_by_hand(values: Callable[..., Values]) -> Form:
    """A graph that holds value and gradients, derived by hand, compiled at its first call."""
    ready: list[Callable[..., Values]] = []

    def form(inputs: Inputs) -> Values:
        if not ready:
            ready.append(torch.compile(values, dynamic=False))
        with torch.no_grad():
            return ready[0](*inputs)

    return form
