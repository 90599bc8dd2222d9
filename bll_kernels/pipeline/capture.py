"""A block's local step as one graph of ATen operations: traced once, by PyTorch's own means."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from bll_kernels.pipeline.block import Block


class NotTraceable(Exception):
    """The local step cannot be written as a graph; the message says why."""


def capture(
    block: Block, parameters: Sequence[Tensor], x: Tensor, labels: Tensor
) -> fx.GraphModule:
    """Trace forward, local loss and gradients of a block, without running them.

    Everything happens on fake tensors: no parameter, buffer or random state changes. Parameters
    and buffers become attributes of the graph, so the graph reads and writes the very tensors.

    Args:
        block: The block.
        parameters: What it trains; none may have a gradient.
        x: Its input [batch, ...]; shape, strides, dtype and device count.
        labels: Labels [batch, ...].

    Returns:
        A graph of (x, labels) that gives (output, loss, gradients): the gradients in the order of
        `parameters`, None where one has none.

    Raises:
        NotTraceable: A parameter is a tensor subclass, or the block's code depends on values.
    """
    for parameter in parameters:
        if type(parameter) not in (Tensor, torch.nn.Parameter):
            raise NotTraceable(f"a parameter is a {type(parameter).__name__}")

    def local_step(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        with torch.enable_grad():
            output = block.forward(x)
            loss, gradient = block.loss_and_grad(output.detach(), labels)
            found = [parameter.grad for parameter in parameters]
            if output.requires_grad:
                inner = torch.autograd.grad(output, parameters, gradient, allow_unused=True)
                found = [total(left, right) for left, right in zip(found, inner, strict=True)]
        return output.detach(), loss.detach(), found

    try:
        trace = make_fx(local_step, tracing_mode="fake", _allow_non_fake_inputs=True)
        with torch.no_grad():
            graph: fx.GraphModule = trace(x.detach(), labels)
    except Exception as error:
        # Whatever a block's own code raises on tensors without values; autograd serves it then.
        lines = str(error).strip().splitlines() or [""]
        raise NotTraceable(f"{type(error).__name__}: {lines[0]}") from error
    finally:
        for parameter in parameters:
            parameter.grad = None
    return graph


def total(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    """The sum of two gradients, either of which may be missing."""
    if left is None or right is None:
        return right if left is None else left
    return left + right
