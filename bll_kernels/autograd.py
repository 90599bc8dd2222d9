"""Gradients of the registered ops.

The forward pass keeps its inputs, and for class losses the small residual [rows, classes]; the
backward pass recomputes the gradient with the upstream factor inside, so no gradient the size of
the map waits in memory, any upstream gradient costs the same, and nothing asks the host. Second
derivatives raise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bll_kernels.ops import op
from bll_kernels.positional import PositionalFunction
from bll_kernels.spec import STOPPED_LOSSES

Gradients = tuple[Tensor | None, ...]


class _FirstDerivative(PositionalFunction):
    """A gradient that remembers what it depends on, only to refuse to be differentiated.

    `torch.autograd.function.once_differentiable` looks at the upstream gradient alone, so with
    create_graph=True and a constant upstream gradient a second derivative would silently be 0.
    """

    @staticmethod
    def forward(grad: Tensor, *sources: Tensor) -> Tensor:
        return grad.view_as(grad)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Gradients:
        raise RuntimeError(
            "bll_kernels losses are differentiable once: their second derivative is not implemented"
        )


def _once(backward: Callable[..., Gradients]) -> Callable[..., Gradients]:
    """Run a backward without a graph; with create_graph, second derivatives raise."""

    def wrapped(ctx: Any, *grads: Tensor) -> Gradients:
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            results = backward(ctx, *grads)
        if torch.compiler.is_compiling():
            return results
        sources = [x for x in (*grads, *ctx.saved_tensors) if x is not None and x.requires_grad]
        if not sources:
            return results
        return tuple(None if x is None else _FirstDerivative.apply(x, *sources) for x in results)

    return wrapped


class PairLoss(PositionalFunction):
    """`pair_loss` with gradients to a and b."""

    @staticmethod
    def forward(
        a: Tensor,
        b: Tensor,
        labels: Tensor | None,
        weight: Tensor | None,
        backend: str,
        *options: Any,
    ) -> Tensor:
        """Value of the op; `options` are the op's own, from `family` to `reduction`."""
        value: Tensor = op(backend, "pair_loss")(a, b, labels, weight, *options)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs[:4])
        ctx.backend, ctx.options = inputs[4], inputs[5:]

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """Upstream gradient times the gradient of the value."""
        a, b, labels, weight = ctx.saved_tensors
        _, _, _, loss, _, _ = ctx.options
        need_a = ctx.needs_input_grad[0]
        need_b = ctx.needs_input_grad[1] and loss not in STOPPED_LOSSES
        grad_a, grad_b = op(ctx.backend, "pair_loss_backward")(
            grad, a, b, labels, weight, *ctx.options, need_a, need_b
        )
        unused = (None,) * (3 + len(ctx.options))
        return (grad_a if need_a else None, grad_b if need_b else None, *unused)


class ClassLoss(PositionalFunction):
    """`class_loss` with gradients to a, table and bias."""

    @staticmethod
    def forward(
        a: Tensor,
        table: Tensor,
        labels: Tensor,
        bias: Tensor | None,
        weight: Tensor | None,
        backend: str,
        *options: Any,
    ) -> tuple[Tensor, Tensor]:
        """Value and residual; `options` are the op's own, from `family` to `reduction`."""
        value, residual = op(backend, "class_loss")(a, table, labels, bias, weight, *options)
        return value, residual

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep a, table and the residual."""
        a, table, _, bias, _, ctx.backend, *options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(a, table, output[1])
        ctx.options = tuple(options[:-1])
        ctx.bias_dtype = None if bias is None else bias.dtype

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor, _: Any) -> Gradients:
        """Upstream gradient times the gradient of the value."""
        a, table, residual = ctx.saved_tensors
        need_a, need_table, _, need_bias = ctx.needs_input_grad[:4]
        grad_a, grad_table, grad_bias = op(ctx.backend, "class_loss_backward")(
            grad, residual, a, table, *ctx.options, need_a, need_table, need_bias
        )
        unused = (None,) * (3 + len(ctx.options))
        return (
            grad_a if need_a else None,
            grad_table if need_table else None,
            None,
            grad_bias.to(ctx.bias_dtype) if need_bias else None,
            *unused,
        )


class GridPool(PositionalFunction):
    """`grid_pool` with the gradient of the full map."""

    @staticmethod
    def forward(x: Tensor, backend: str, kind: str, grid: int) -> Tensor:
        """Pooled map."""
        pooled: Tensor = op(backend, "grid_pool")(x, kind, grid)
        return pooled

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the map."""
        x, ctx.backend, *options = inputs
        ctx.save_for_backward(x)
        ctx.options = tuple(options)

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """Spread the pooled gradient over the map."""
        (x,) = ctx.saved_tensors
        return op(ctx.backend, "grid_pool_backward")(grad, x, *ctx.options), None, None, None


class StandardizeChannels(PositionalFunction):
    """`standardize_channels` with the gradient to x, through mean and variance."""

    @staticmethod
    def forward(x: Tensor, backend: str, channels: int, eps: float) -> tuple[Tensor, Tensor]:
        """The standardised rows and what every channel was multiplied by."""
        standardized, scale = op(backend, "standardize_channels")(x, channels, eps)
        return standardized, scale

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the outputs."""
        ctx.backend = inputs[1]
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*output)

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor, _: Any) -> Gradients:
        """What is left of the gradient when no channel's mean or variance can change."""
        grad_x = op(ctx.backend, "standardize_channels_backward")(grad, *ctx.saved_tensors)
        return grad_x, None, None, None


class GramLoss(PositionalFunction):
    """`gram_loss` with the gradient to x."""

    @staticmethod
    def forward(
        x: Tensor,
        labels: Tensor | None,
        vectors: Tensor | None,
        weight: Tensor | None,
        backend: str,
        *options: Any,
    ) -> Tensor:
        """Value of the op; `options` are the op's own, from `same` to `reduction`."""
        value: Tensor = op(backend, "gram_loss")(x, labels, vectors, weight, *options)
        return value

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the inputs."""
        ctx.save_for_backward(*inputs[:4])
        ctx.backend, ctx.options = inputs[4], inputs[5:]

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor) -> Gradients:
        """Upstream gradient times the gradient of the value."""
        grad_x = op(ctx.backend, "gram_loss_backward")(grad, *ctx.saved_tensors, *ctx.options)
        return (grad_x, *(None,) * (4 + len(ctx.options)))


class ClassMeans(PositionalFunction):
    """`class_means` with the gradient to x."""

    @staticmethod
    def forward(x: Tensor, labels: Tensor, backend: str, classes: int) -> tuple[Tensor, Tensor]:
        """Means and counts."""
        means, counts = op(backend, "class_means")(x, labels, classes)
        return means, counts

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keep the labels and the counts."""
        x, labels, ctx.backend, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(labels, output[1])
        ctx.dtype = x.dtype

    @staticmethod
    @_once
    def backward(ctx: Any, grad: Tensor, _: Any) -> Gradients:
        """Every row gets its class's gradient divided by the class's count."""
        grad_x = op(ctx.backend, "class_means_backward")(grad, *ctx.saved_tensors)
        return grad_x.to(ctx.dtype), None, None, None
