"""The local step of a block as a function of its tensors, and of many such blocks at once by vmap.

A traced step reads the tensors of its block as attributes. Lifted, it takes them as arguments, so
that equal blocks have equal steps and `torch.func.vmap` can run them over stacked tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.func import vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel

from bll_kernels import batching
from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.capture import NotTraceable, capture
from bll_kernels.pipeline.program import Program
from bll_kernels.pipeline.simplify import attribute, simplify
from bll_kernels.pipeline.tidy import tidy

batching.register()

#: Op of a class loss, by its name in any backend, that is written in ATen operations for vmap.
_CLASS_LOSS: Final = "class_loss_value_and_grad"


def lift(
    block: Block, parameters: Sequence[Tensor], buffers: Sequence[Tensor], x: Tensor, labels: Tensor
) -> fx.GraphModule:
    """Trace a block's local step as a function of (*parameters, *buffers, x, labels).

    Args:
        block: The block.
        parameters: What it trains; none may have a gradient.
        buffers: What its forward may write to.
        x: Its input [batch, ...].
        labels: Labels [batch, ...].

    Returns:
        A graph that gives (output, loss, gradients of the parameters). Buffers are written in
        place. Tensors that are neither stay attributes.

    Raises:
        NotTraceable: see `capture`; or the step draws random numbers.
    """
    # Of attention only the products and the softmax have batching rules.
    with sdpa_kernel(SDPBackend.MATH):
        traced = capture(block, parameters, x, labels)
    own = [*parameters, *buffers]
    graph = fx.Graph()
    arguments = [graph.placeholder(f"own_{at}") for at in range(len(own))]
    place = {id(tensor): at for at, tensor in enumerate(own)}
    known: dict[fx.Node, fx.Node] = {}
    nodes = sorted(traced.graph.nodes, key=lambda node: node.op != "placeholder")
    for node in nodes:
        if _draws(node):
            raise NotTraceable(
                f"it draws random numbers ({node.target}), which would come from one stream for "
                "all blocks instead of one for each"
            )
        at = place.get(id(attribute(traced, node))) if node.op == "get_attr" else None
        known[node] = arguments[at] if at is not None else graph.node_copy(node, known.__getitem__)
        known[node].meta = dict(node.meta)
    lifted = fx.GraphModule(traced, graph)
    simplify(lifted)
    for node in lifted.graph.nodes:
        if _is_linear_class_loss(node):
            node.target = batching.linear_class_loss
        elif node.target is torch.ops.aten.view.default:
            # Batched, an operation may lay its result out in another way.
            node.target = torch.reshape
    lifted.recompile()
    return lifted


def _draws(node: fx.Node) -> bool:
    return (
        isinstance(node.target, OpOverload)
        and torch.Tag.nondeterministic_seeded in node.target.tags
    )


def _is_linear_class_loss(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    namespace, _, name = node.target._schema.name.partition("::")
    own = namespace.startswith("bll_") and name == _CLASS_LOSS
    arguments: Sequence[Any] = node.args
    return own and batching.is_linear(*arguments)


def difference(left: fx.GraphModule, right: fx.GraphModule) -> str | None:
    """Where two lifted steps differ, in words; None: they are the same."""
    first, second = left.code.splitlines(), right.code.splitlines()
    for a, b in zip(first, second, strict=False):
        if a != b:
            return f"{a.strip()!r} against {b.strip()!r}"
    if len(first) != len(second):
        return f"{len(first)} against {len(second)} operations"
    for node in left.graph.nodes:
        if node.op != "get_attr":
            continue
        a_tensor, b_tensor = attribute(left, node), attribute(right, node)
        if a_tensor is not b_tensor and not torch.equal(a_tensor, b_tensor):
            return f"a tensor of shape {list(a_tensor.shape)} that is no parameter and no buffer"
    return None


def batched(
    step: fx.GraphModule,
    parameters: Sequence[Tensor],
    buffers: Sequence[Tensor],
    x: Tensor,
    labels: Tensor,
    *,
    compiled: bool = False,
) -> Program:
    """A lifted step over stacked tensors as a program of (x, labels).

    Args:
        step: What `lift` returned.
        parameters: Stacked, [blocks, ...].
        buffers: Stacked; written in place.
        x: [blocks, batch, ...].
        labels: [blocks, batch, ...].
        compiled: Compile the program by TorchInductor.

    Returns:
        A program that gives outputs [blocks, batch, ...], losses [blocks] and the gradients of the
        stacked parameters.

    Raises:
        NotTraceable: an operation cannot be batched.
    """

    def all_steps(x: Tensor, labels: Tensor) -> Any:
        return vmap(step, randomness="error")(*parameters, *buffers, x, labels)

    try:
        trace = make_fx(all_steps, tracing_mode="fake", _allow_non_fake_inputs=True)
        with torch.no_grad():
            graph = trace(x, labels)
    except Exception as error:
        # Whatever vmap refuses, or an operation without a batching rule.
        lines = str(error).strip().splitlines() or [""]
        raise NotTraceable(f"vmap refuses it: {type(error).__name__}: {lines[0]}") from error
    tidy(graph)
    simplify(graph)
    return Program(graph, parameters, compiled=compiled)
