"""The check before training: each local loss reaches the parameters of its own block and no other.

It runs on a copy of the model (see `bll.trace`): the sum of each block's feature is differentiated
and the parameters that get a gradient are that block's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from bll.blocks import Block, last_block_name
from bll.features import select_feature, select_logits
from bll.leaks import Leak, find_leak, reaches
from bll.rules.base import Rule
from bll.trace import Trace, run_traced
from bll.units import has_weight

_REENTRANT = "CheckpointFunctionBackward"


class LocalityError(ValueError):
    """The model cannot be cut as asked, for the reason given; it is as it was.

    Attributes:
        cuts: The cuts without which reasons of this kind would be gone; none if no cut is to blame.
    """

    def __init__(self, message: str, cuts: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.cuts = tuple(cuts)


def survey_blocks(
    model: nn.Module,
    cuts: Sequence[str],
    rule: Rule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    cut_tensors: bool = False,
) -> tuple[Block, ...]:
    """Run a copy of the model once and describe its blocks.

    Args:
        model: The model, which is not changed.
        cuts: Names of the modules that end every block but the last.
        rule: The rule; one that does not cut may have parameters shared by blocks.
        args: Positional inputs.
        kwargs: Keyword inputs, without labels.
        cut_tensors: Whether what goes round a border is detached too.

    Raises:
        LocalityError: A cut is not reached, reached more than once or out of order; a block has no
            parameter; a gradient crosses a border (skip connection, tied weights); a block's output
            is no feature the rule can read.
    """

    def analyse(trace: Trace) -> tuple[Block, ...]:
        _check_order(cuts, trace.cuts)
        return _describe(trace, cuts, rule)

    cut = rule.cuts and cut_tensors
    return run_traced(model, cuts, args, kwargs, detach=rule.cuts, cut_tensors=cut, analyse=analyse)


def _check_order(cuts: Sequence[str], reached: list[str]) -> None:
    counts = Counter(reached)
    for name in cuts:
        if counts[name] == 0:
            raise LocalityError(f"blocks: the forward pass never calls {name!r}")
        if counts[name] > 1:
            raise LocalityError(
                f"blocks: the forward pass calls {name!r} {counts[name]} times; "
                "a block must end once"
            )
    if list(cuts) != reached:
        raise LocalityError(
            f"blocks: expected names in execution order, which is {', '.join(reached)}; "
            f"got {', '.join(cuts)}"
        )


def _describe(trace: Trace, cuts: Sequence[str], rule: Rule) -> tuple[Block, ...]:
    names = [*cuts, last_block_name(cuts)]
    features = [_feature(trace, index, name) for index, name in enumerate(names)]
    if rule.local:
        _check_batch(names, features)
    if rule.cuts:
        _check_checkpointing(names, features)
    reach = [_reached_parameters(trace.model, feature) for feature in features]
    if trace.replayed and rule.local:
        raise LocalityError(
            f"blocks: {trace.replayed[0]!r} ends a block inside a checkpointed region, whose "
            "recomputation would take its loss again; name the last module before or after it",
            trace.replayed[:1],
        )
    for index, reached in enumerate(reach):
        if not reached:
            raise LocalityError(
                f"blocks: block {names[index]!r} is empty: its loss reaches no parameter",
                cuts[index : index + 1] or cuts[-1:],
            )
    if rule.cuts:
        _check_leak(find_leak(trace, names, reach), names, reach)
    owned = _owned_parameters(trace, reach)
    sizes = {name: parameter.numel() for name, parameter in trace.model.named_parameters()}
    modules = _modules_of_blocks(trace, cuts)
    weighted = _weighted_modules(trace)
    return tuple(
        Block(
            name=name,
            cut=name if index < len(cuts) else None,
            modules=modules[index],
            parameters=owned[index],
            parameter_count=sum(sizes[parameter] for parameter in owned[index]),
            layers=weighted[index],
            output_shape=tuple(features[index].shape),
            activation_bytes=sum(c.output_bytes for c in trace.calls if c.block == index),
            flops=trace.flops.by_block[index],
            feature=_spec(rule, name, features[index]) if index < len(cuts) else None,
            hands_on_copy=index < len(cuts) and trace.written_in_place(index),
        )
        for index, name in enumerate(names)
    )


def _check_leak(leak: Leak | None, names: list[str], reach: list[set[str]]) -> None:
    if leak is None:
        return
    first, second = names[leak.first], names[leak.second]
    raise LocalityError(
        f"blocks: the losses of blocks {first!r} and {second!r} both reach parameter "
        f"{leak.parameter!r}: {leak.reason}",
        [names[index] for index in sorted(_leaky_cuts(reach))],
    )


def _leaky_cuts(reach: list[set[str]]) -> set[int]:
    """Indices of the cuts between blocks whose losses reach the same parameter."""
    leaky: set[int] = set()
    for name in set().union(*reach):
        blocks = [index for index, reached in enumerate(reach) if name in reached]
        leaky.update(range(blocks[0], blocks[-1]))
    return leaky


def _modules_of_blocks(trace: Trace, cuts: Sequence[str]) -> list[tuple[str, ...]]:
    """Name the largest modules that ran in one block only and hold no cut inside."""
    ran_in: dict[str, set[int]] = {}
    for call in trace.calls:
        ran_in.setdefault(call.name, set()).add(call.block)
    found: list[list[str]] = [[] for _ in range(len(cuts) + 1)]

    def visit(name: str, module: nn.Module) -> None:
        start = name + "." if name else ""
        inside = [b for leaf, b in ran_in.items() if leaf == name or leaf.startswith(start)]
        blocks = set().union(*inside)
        if name and len(blocks) == 1 and not any(cut.startswith(start) for cut in cuts):
            found[blocks.pop()].append(name)
        elif blocks:
            for child_name, child in module.named_children():
                visit(start + child_name, child)

    visit("", trace.model)
    return [tuple(names) for names in found]


def _weighted_modules(trace: Trace) -> list[int]:
    """Count the modules of each block that hold a weight of two or more dimensions."""
    modules = dict(trace.model.named_modules())
    ran = {(call.block, call.name) for call in trace.calls if has_weight(modules[call.name])}
    counts = Counter(block for block, _ in ran)
    return [counts[index] for index in range(len(trace.cuts) + 1)]


def _check_batch(names: list[str], features: list[Tensor]) -> None:
    for name, feature in zip(names[:-1], features, strict=False):
        if len(feature) != len(features[-1]):
            raise LocalityError(
                f"block {name!r}: expected an output with one row per sample, as the model's "
                f"{list(features[-1].shape)}; got {list(feature.shape)}",
                [name],
            )


def _check_checkpointing(names: list[str], features: list[Tensor]) -> None:
    for name, feature in zip(names, features, strict=True):
        if _REENTRANT in _graph_nodes(feature):
            raise LocalityError(
                f"blocks: block {name!r} uses reentrant checkpointing, which gives no gradient on "
                "a detached input; use torch.utils.checkpoint with use_reentrant=False"
            )


def _graph_nodes(tensor: Tensor) -> set[str]:
    """Names of the operations in a tensor's autograd graph."""
    found = set()
    waiting = [tensor.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found.add(node.name())
        waiting += [parent for parent, _ in node.next_functions]
    return found


def _feature(trace: Trace, index: int, name: str) -> Tensor:
    select = select_logits if index == len(trace.handed_on) else select_feature
    try:
        return select(trace.block_outputs[index])
    except ValueError as error:
        raise LocalityError(f"block {name!r}: {error}", trace.cuts[index : index + 1]) from error


def _spec(rule: Rule, name: str, feature: Tensor) -> Any:
    try:
        return rule.feature_spec(feature)
    except ValueError as error:
        raise LocalityError(f"block {name!r}: {error}", [name]) from error


def _reached_parameters(model: nn.Module, feature: Tensor) -> set[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    reached = reaches(feature, [parameter for _, parameter in named])
    return {name for (name, _), hit in zip(named, reached, strict=True) if hit}


def _owned_parameters(trace: Trace, reach: list[set[str]]) -> list[tuple[str, ...]]:
    """Give every parameter to one block: the first whose loss reaches it.

    One that no loss reaches goes where its module ran, else where its predecessor went.
    """
    ran_in: dict[str, int] = {}
    for call in trace.calls:
        ran_in.setdefault(call.name, call.block)
    owned: list[list[str]] = [[] for _ in reach]
    current = 0
    for name, _ in trace.model.named_parameters():
        reached_by = [index for index, reached in enumerate(reach) if name in reached]
        module = name.rpartition(".")[0]
        current = reached_by[0] if reached_by else ran_in.get(module, current)
        owned[current].append(name)
    return [tuple(names) for names in owned]
