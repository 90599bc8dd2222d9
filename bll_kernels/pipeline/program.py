"""A simplified graph of a local step as three functions that call its operations in turn.

Between the parts only what a later part reads is kept, and within a part a tensor is let go after
its last use. The functions hold the parameters and buffers themselves, so an optimiser that updates
in place needs no copy.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from bll_kernels.pipeline.capture import NotTraceable
from bll_kernels.pipeline.compiled import CompiledPart, is_worthwhile
from bll_kernels.pipeline.simplify import attribute

aten = torch.ops.aten

# The same operations through torch's own argument parser, which costs less per call than that of an
# operator overload.
_DIRECT: Final[dict[Any, Callable[..., Any]]] = {
    aten.add.Tensor: torch.add,
    aten.addmm.default: torch.addmm,
    aten.bmm.default: torch.bmm,
    aten.convolution.default: torch.convolution,
    aten.mm.default: torch.mm,
    aten.mul.Tensor: torch.mul,
    aten.native_batch_norm.default: torch.native_batch_norm,
    aten.native_layer_norm.default: torch.native_layer_norm,
    aten.relu.default: torch.relu,
    aten.sum.dim_IntList: torch.sum,
    aten.t.default: torch.t,
    aten.transpose.int: torch.transpose,
}
_METHODS: Final = {
    aten.add_.Tensor: "add_",
    aten.expand.default: "expand",
    aten.view.default: "view",
}


class Program:
    """The local step of one block for one shape of input.

    Args:
        module: A simplified graph of (x, labels) -> (output, loss, gradients).
        parameters: What the gradients belong to.
        compiled: Compile each part by TorchInductor; its arithmetic is then reordered.

    Attributes:
        module: The graph itself.
        parts: Forward (x, labels), loss and backward (what the part before hands on), as functions.
        source: The Python code of the three parts, for reading.
        calls: Operations in all.

    Raises:
        NotTraceable: The graph is not of this form.
    """

    def __init__(
        self, module: fx.GraphModule, parameters: Sequence[Tensor], *, compiled: bool = False
    ) -> None:
        self.module = module
        graph = module.graph
        _own_gradients(graph, parameters)
        (outputs,) = next(node for node in graph.nodes if node.op == "output").args
        output, loss, gradients = outputs
        if not isinstance(output, fx.Node) or not isinstance(loss, fx.Node):
            raise NotTraceable("its output or its loss does not depend on its input")
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        body = [node for node in graph.nodes if node.op == "call_function"]
        first = _before(output, body, writes=True)
        second = _before(loss, [node for node in body if node not in first], writes=False)
        rest = [node for node in body if node not in first and node not in second]
        parts = [_Part(first, [output]), _Part(second, [loss]), _Part(rest, gradients)]
        have = inputs
        built = []
        for at, part in enumerate(parts):
            later = {node for other in parts[at + 1 :] for node in other.needs()}
            saved = [node for node in [*have, *part.body] if node in later]
            last = at + 1 == len(parts)
            built.append(part.build(module, have, saved, last=last, compiled=compiled))
            have = saved
        self.source = "\n".join(source for _, source in built)
        self.calls = sum(node.target is not operator.getitem for node in body)
        self._forward, self._loss, self._backward = (function for function, _ in built)
        self.parts = (self._forward, self._loss, self._backward)

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        """The output, and what the loss reads."""
        found: tuple[Tensor, tuple[Any, ...]] = self._forward(x, labels)
        return found

    def loss(self, saved: tuple[Any, ...]) -> tuple[Tensor, tuple[Any, ...]]:
        """The loss, and what the backward reads."""
        found: tuple[Tensor, tuple[Any, ...]] = self._loss(*saved)
        return found

    def backward(self, saved: tuple[Any, ...]) -> list[Tensor | None]:
        """The gradients.

        Each has the strides of its parameter, and None stands where there is none. No two share
        memory, and none is a view of anything else.
        """
        found: list[Tensor | None] = self._backward(*saved)
        return found


@dataclass(frozen=True)
class _Part:
    """Operations that run at once, and what they are for."""

    body: Sequence[fx.Node]
    results: Sequence[fx.Node | None]

    def needs(self) -> set[fx.Node]:
        """What the part takes from before."""
        read = {source for node in self.body for source in node.all_input_nodes}
        read |= {node for node in self.results if node is not None}
        return {node for node in read if node.op != "get_attr"} - set(self.body)

    def build(
        self,
        module: fx.GraphModule,
        have: Sequence[fx.Node],
        saved: Sequence[fx.Node],
        *,
        last: bool,
        compiled: bool,
    ) -> tuple[Callable[..., Any], str]:
        """The part as a function of what it has, and its source."""
        compiled = compiled and is_worthwhile(self.body)
        graph = fx.Graph()
        held = {
            str(node.target): attribute(module, node).detach()
            for node in _attributes([*self.body, *self.results])
        }
        names = {target: graph.placeholder(target.replace(".", "_")) for target in held}
        known = {node: graph.placeholder(node.name) for node in have}

        def here(node: fx.Node) -> fx.Node:
            return names[str(node.target)] if node.op == "get_attr" else known[node]

        for node in self.body:
            copy = graph.node_copy(node, here)
            known[node] = copy if compiled else _direct(copy)
        results = [None if node is None else here(node) for node in self.results]
        graph.output(results if last else (results[0], tuple(here(node) for node in saved)))
        built = fx.GraphModule(torch.nn.Module(), graph)
        source = built.code.strip() + "\n"
        if compiled:
            return CompiledPart(built, list(held.values())), source
        return partial(type(built).forward, built, *held.values()), source


def _attributes(nodes: Sequence[fx.Node | None]) -> list[fx.Node]:
    """The attributes that nodes are or read."""
    found = [node for node in nodes if node is not None]
    found += [source for node in found for source in node.all_input_nodes]
    return [node for node in found if node.op == "get_attr"]


def _direct(node: fx.Node) -> fx.Node:
    if node.target in _METHODS:
        node.op, node.target = "call_method", _METHODS[node.target]
    else:
        node.target = _DIRECT.get(node.target, node.target)
    return node


def _own_gradients(graph: fx.Graph, parameters: Sequence[Tensor]) -> None:
    """Copy gradients that are not tensors of their own in their parameter's layout.

    Optimisers' kernels read a gradient as memory of the same layout, and may write to it.
    """
    node = next(node for node in graph.nodes if node.op == "output")
    output, loss, gradients = node.args[0]
    owned: list[fx.Node | None] = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is None:
            owned.append(None)
            continue
        value = gradient.meta["val"]
        fresh = (
            gradient.op == "call_function"
            and not _is_view_of_another(gradient)
            and gradient not in owned
            and gradient not in (output, loss)
            and all(_reads_only(user) for user in gradient.users)
        )
        if not fresh or value.stride() != parameter.stride():
            with graph.inserting_before(node):
                target = graph.call_function(_copy_like, (gradient, tuple(parameter.stride())))
            target.meta = dict(gradient.meta)
            gradient = target
        owned.append(gradient)
    node.args = ((output, loss, owned),)


def _copy_like(gradient: Tensor, strides: tuple[int, ...]) -> Tensor:
    return torch.empty_strided(
        gradient.shape, strides, dtype=gradient.dtype, device=gradient.device
    ).copy_(gradient)


def _is_view_of_another(node: fx.Node) -> bool:
    if node.target is operator.getitem:
        return False
    if not isinstance(node.target, OpOverload):
        return False
    return any(result.alias_info is not None for result in node.target._schema.returns)


def _reads_only(user: fx.Node) -> bool:
    # A later view of a gradient would share its memory.
    return user.op == "output" or not _is_view_of_another(user)


def _before(target: fx.Node, body: Sequence[fx.Node], *, writes: bool) -> list[fx.Node]:
    """What `target` needs of `body`, and with `writes` what is written before it is there."""
    position = {node: at for at, node in enumerate(body)}
    wanted = {target} if target in position else set()
    if writes:
        wanted |= {node for node in body[: position.get(target, 0)] if _writes_state(node)}
    for node in reversed(body):
        if node in wanted:
            wanted |= {source for source in node.all_input_nodes if source in position}
    # Results of one operation stay together, to be unpacked at once.
    wanted |= {
        user
        for node in list(wanted)
        for user in node.users
        if user.target is operator.getitem and user in position
    }
    return [node for node in body if node in wanted]


def _writes_state(node: fx.Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
