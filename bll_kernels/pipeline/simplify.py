"""Passes over a traced local step: what tracing adds and a kernel does not need is taken out.

The arithmetic of the forward stays what it is, operation by operation. A loss of `bll_kernels` and
its gradient, traced as two operations, become the one that computes both in one pass over memory.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

aten = torch.ops.aten

_ALIASES: Final = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
# What each loss op takes between its upstream gradient and the flags of the wanted gradients.
_FUSED_LOSSES: Final = ("pair_loss", "class_loss", "gram_loss")


def simplify(module: fx.GraphModule) -> None:
    """Clean the graph of a local step in place, and turn views of its attributes into attributes.

    Args:
        module: What `capture` returned. It must run with the tensors it was traced with.
    """
    graph = module.graph
    for passes in (_drop_aliases, _fuse_losses, _shorten_views, _fold_attributes):
        passes(module)
        _drop_unused(graph)
    graph.lint()


def _args(node: fx.Node) -> tuple[Any, ...]:
    return node.args


def is_view(target: object) -> bool:
    """Whether an operation returns another view of its first argument, and writes nothing."""
    if not isinstance(target, OpOverload) or target._schema.is_mutable:
        return False
    returns = target._schema.returns
    return len(returns) == 1 and returns[0].alias_info is not None


def _is_pure(node: fx.Node) -> bool:
    if node.op == "get_attr" or node.target is operator.getitem:
        return True
    if node.op != "call_function" or not isinstance(node.target, OpOverload):
        return False
    # Batch norm writes its running statistics without saying so in its schema.
    return not (
        node.target._schema.is_mutable
        or torch.Tag.nondeterministic_seeded in node.target.tags
        or "batch_norm" in node.target.name()
        or "assert" in node.target.name()
    )


def _drop_unused(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if not node.users and _is_pure(node):
            graph.erase_node(node)


def _drop_aliases(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target in _ALIASES:
            node.replace_all_uses_with(_args(node)[0])


def _shape(node: fx.Node) -> Sequence[int]:
    return tuple(node.meta["val"].shape)


def _shorten_views(module: fx.GraphModule) -> None:
    """Transposes that cancel, views that change nothing, and sums whose dimension is dropped."""
    for node in module.graph.nodes:
        source = _args(node)[0] if _args(node) else None
        if not isinstance(source, fx.Node):
            continue
        if node.target is aten.t.default and source.target is aten.t.default:
            node.replace_all_uses_with(_args(source)[0])
        elif node.target is aten.view.default:
            kept = source.target is aten.sum.dim_IntList and _args(source)[2:] == (True,)
            if _shape(node) == _shape(source):
                node.replace_all_uses_with(source)
            elif kept and len(source.users) == 1 and len(_args(source)[1]) == 1:
                dim = _args(source)[1][0]
                left = [size for at, size in enumerate(_shape(source)) if at != dim]
                if tuple(left) == _shape(node):
                    source.args = (*_args(source)[:2], False)
                    source.meta["val"] = node.meta["val"]
                    node.replace_all_uses_with(source)


def _fold_attributes(module: fx.GraphModule) -> None:
    """What does not change is made once: views of parameters and buffers, and upstream ones."""
    for node in module.graph.nodes:
        sources = node.all_input_nodes
        if is_view(node.target) and [source.op for source in sources] == ["get_attr"]:
            held = attribute(module, sources[0]).detach()
            _hold(module, node, node.target(held, *_args(node)[1:], **node.kwargs))
        elif node.target is aten.ones_like.default and not any(map(_writes, node.users)):
            one = node.meta["val"]
            _hold(module, node, torch.ones(one.shape, dtype=one.dtype, device=one.device))


def _writes(node: fx.Node) -> bool:
    return not isinstance(node.target, OpOverload) or node.target._schema.is_mutable


def _hold(module: fx.GraphModule, node: fx.Node, tensor: Tensor) -> None:
    """Make a tensor an attribute in the place of a node."""
    name = f"_held_{node.name}"
    module.register_buffer(name, tensor, persistent=False)
    with module.graph.inserting_before(node):
        replacement = module.graph.get_attr(name)
    replacement.meta = dict(node.meta)
    node.replace_all_uses_with(replacement)


def attribute(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The tensor behind a `get_attr` node."""
    found: Any = module
    for part in str(node.target).split("."):
        found = getattr(found, part)
    if not isinstance(found, Tensor):
        raise TypeError(f"graph: expected a tensor behind {node.target!r}, got {type(found)}")
    return found


def _own_op(target: object) -> tuple[str, str] | None:
    """Backend and name of an op of `bll_kernels`."""
    if not isinstance(target, OpOverload) or not target.namespace.startswith("bll_"):
        return None
    return target.namespace.removeprefix("bll_"), target._schema.name.split("::")[1]


def _fuse_losses(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        own = _own_op(node.target)
        if own is None or not own[1].endswith("_backward"):
            continue
        backend, name = own[0], own[1].removesuffix("_backward")
        if name in _FUSED_LOSSES:
            _fuse_loss(module.graph, node, backend, name)


def _fuse_loss(graph: fx.Graph, backward: fx.Node, backend: str, name: str) -> None:
    """`NAME` and `NAME_backward` of a value taken as it is, by `NAME_value_and_grad`."""
    upstream = _args(backward)[0]
    if not isinstance(upstream, fx.Node) or upstream.target is not aten.ones_like.default:
        return
    value: fx.Node = _args(upstream)[0]
    # Class losses return their residual beside the value.
    forward: fx.Node = _args(value)[0] if name == "class_loss" else value
    if not isinstance(forward, fx.Node) or _own_op(forward.target) != (backend, name):
        return
    if value.meta["val"].dim() or not _same_inputs(forward, backward, name):
        return
    flags = _args(backward)[len(_args(backward)) - {"class_loss": 3, "pair_loss": 2}.get(name, 0) :]
    fused = getattr(getattr(torch.ops, f"bll_{backend}"), f"{name}_value_and_grad").default
    extra = flags if name != "gram_loss" else ()
    with graph.inserting_before(forward):
        both = graph.call_function(fused, (*_args(forward), *extra))
        parts = [graph.call_function(operator.getitem, (both, 0))]
    parts[0].meta = dict(value.meta)
    value.replace_all_uses_with(parts[0])
    if name == "gram_loss":
        with graph.inserting_before(backward):
            gradient = graph.call_function(operator.getitem, (both, 1))
        gradient.meta = dict(backward.meta)
        backward.replace_all_uses_with(gradient)
        return
    for user in list(backward.users):
        index = _args(user)[1]
        with graph.inserting_before(user):
            gradient = graph.call_function(operator.getitem, (both, index + 1))
        gradient.meta = dict(user.meta)
        user.replace_all_uses_with(gradient)


def _same_inputs(forward: fx.Node, backward: fx.Node, name: str) -> bool:
    """Whether the backward reads what the forward read, with the same options."""
    if name == "class_loss":
        a, table, _, _, _, *options = _args(forward)
        same_residual = (
            isinstance(_args(backward)[1], fx.Node)
            and _args(backward)[1].target is operator.getitem
            and _args(backward)[1].args == (forward, 1)
        )
        return same_residual and _equal(
            (a, table, *options[:-1]), _args(backward)[2 : len(_args(backward)) - 3]
        )
    kept = len(_args(backward)) - (2 if name == "pair_loss" else 0)
    return _equal(_args(forward), _args(backward)[1:kept])


def _equal(left: Sequence[Any], right: Sequence[Any]) -> bool:
    return len(left) == len(right) and all(_same(a, b) for a, b in zip(left, right, strict=True))


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, fx.Node) and isinstance(right, fx.Node) and left.op == "get_attr":
        return right.op == "get_attr" and left.target == right.target
    return bool(left == right)
