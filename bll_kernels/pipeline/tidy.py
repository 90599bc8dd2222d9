"""Passes over a step traced through vmap: what its batching rules add and no kernel needs."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import fx

aten = torch.ops.aten

#: Operations that may do nothing but name the same elements in the same shape again.
_SAME: Final = {
    aten._unsafe_view.default,
    aten.expand.default,
    aten.permute.default,
    aten.view.default,
}
_TIMES: Final = {aten.mul.Scalar, aten.mul.Tensor}


def tidy(module: fx.GraphModule) -> None:
    """Drop products with 1 and views that change nothing; a sum with a batched product becomes one.

    Args:
        module: The graph of a batched step, changed in place.
    """
    graph = module.graph
    for node in graph.nodes:
        if _does_nothing(node):
            node.replace_all_uses_with(node.args[0])
    _drop_unused(graph)
    for node in list(graph.nodes):
        _add_to_product(graph, node)
    graph.lint()


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and (node.target in _SAME or node.target in _TIMES):
            graph.erase_node(node)


def _value(node: Any) -> Any:
    return node.meta.get("val") if isinstance(node, fx.Node) else None


def _does_nothing(node: fx.Node) -> bool:
    source = _value(node.args[0]) if node.op == "call_function" and node.args else None
    result = _value(node)
    if not isinstance(source, torch.Tensor) or not isinstance(result, torch.Tensor):
        return False
    if source.shape != result.shape or source.dtype != result.dtype:
        return False
    if node.target is aten.permute.default:
        return list(node.args[1]) == list(range(source.dim()))  # type: ignore[arg-type]
    if node.target in _SAME:
        return True
    if node.target not in _TIMES:
        return False
    factor = node.args[1]
    return isinstance(factor, int | float) and factor == 1


def _add_to_product(graph: fx.Graph, node: fx.Node) -> None:
    if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return
    for product, other in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        if not isinstance(product, fx.Node) or product.target is not aten.bmm.default:
            continue
        made, added = _value(product), _value(other)
        if len(product.users) != 1 or added is None or _value(node).shape != made.shape:
            continue
        if added.dtype == made.dtype and added.dim() == made.dim():
            with graph.inserting_before(node):
                fused = graph.call_function(aten.baddbmm.default, (other, *product.args))
            fused.meta = dict(node.meta)
            node.replace_all_uses_with(fused)
            graph.erase_node(node)
            graph.erase_node(product)
            return
