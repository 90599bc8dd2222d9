"""The check before training: each local loss reaches the parameters of its own block and no other.

It runs on a copy of the model (see `bll.trace`): the sum of each block's feature is differentiated
and the parameters that get a gradient are that block's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bll.blocks import Block, last_block_name
from bll.features import select_feature, select_logits
from bll.rules.base import Rule
from bll.trace import Call, Trace, run_traced

_REENTRANT = "CheckpointFunctionBackward"


class LocalityError(ValueError):
    """The model cannot be cut as asked, for the reason given; it is as it was."""


def survey_blocks(
    model: nn.Module,
    cuts: Sequence[str],
    rule: Rule,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[Block, ...]:
    """Run a copy of the model once and describe its blocks.

    Args:
        model: The model, which is not changed.
        cuts: Names of the modules that end every block but the last.
        rule: The rule; one that does not cut may have parameters shared by blocks.
        args: Positional inputs.
        kwargs: Keyword inputs, without labels.

    Raises:
        LocalityError: A cut is not reached, reached more than once or out of order; a block has no
            parameter; a gradient crosses a border (skip connection, tied weights); a block's output
            is no feature the rule can read.
    """

    def analyse(trace: Trace) -> tuple[Block, ...]:
        _check_order(cuts, trace.cuts)
        return _describe(trace, cuts, rule)

    return run_traced(model, cuts, args, kwargs, detach=rule.cuts, analyse=analyse)


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
    if rule.cuts:
        _check_checkpointing(names, features)
    reach = [_reached_parameters(trace.model, feature) for feature in features]
    if trace.replayed and rule.local:
        raise LocalityError(
            f"blocks: {trace.replayed[0]!r} ends a block inside a checkpointed region, whose "
            "recomputation would take its loss again; name the last module before or after it"
        )
    for name, reached in zip(names, reach, strict=True):
        if not reached:
            raise LocalityError(f"blocks: block {name!r} is empty: its loss reaches no parameter")
    if rule.cuts:
        _check_leaks(trace, names, features, reach)
    owned = _owned_parameters(trace, reach)
    blocks = []
    for index, name in enumerate(names):
        last = index == len(cuts)
        blocks.append(
            Block(
                name=name,
                cut=None if last else name,
                parameters=owned[index],
                output_shape=tuple(features[index].shape),
                activation_bytes=sum(
                    call.output_bytes for call in trace.calls if call.block == index
                ),
                feature=None if last else _spec(rule, name, features[index]),
                hands_on_copy=not last and trace.written_in_place(index),
            )
        )
    return tuple(blocks)


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
        raise LocalityError(f"block {name!r}: {error}") from error


def _spec(rule: Rule, name: str, feature: Tensor) -> Any:
    try:
        return rule.feature_spec(feature)
    except ValueError as error:
        raise LocalityError(f"block {name!r}: {error}") from error


def _reaches(output: Tensor, inputs: Sequence[Tensor]) -> list[bool]:
    if not output.requires_grad or not inputs:
        return [False] * len(inputs)
    gradients = torch.autograd.grad(output.sum(), inputs, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def _reached_parameters(model: nn.Module, feature: Tensor) -> set[str]:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    reached = _reaches(feature, [parameter for _, parameter in named])
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


def _check_leaks(
    trace: Trace, names: list[str], features: list[Tensor], reach: list[set[str]]
) -> None:
    for name, parameter in trace.model.named_parameters():
        blocks = [index for index, reached in enumerate(reach) if name in reached]
        if len(blocks) > 1:
            first, second = blocks[0], blocks[1]
            reason = (
                _tied(trace, name, parameter)
                or _called_twice(trace, name, names, first, second)
                or _way_round(trace, name, parameter, names, first, second)
            )
            raise LocalityError(
                f"blocks: the losses of blocks {names[first]!r} and {names[second]!r} both reach "
                f"parameter {name!r}: {reason}"
            )


def _tied(trace: Trace, name: str, parameter: Tensor) -> str | None:
    named = trace.model.named_parameters(remove_duplicate=False)
    holders = [_module_name(other) for other, shared in named if shared is parameter]
    if len(holders) < 2:
        return None
    modules = " and ".join(repr(holder) for holder in holders)
    return f"tied weights: modules {modules} share it; untie them or keep them in one block"


def _module_name(parameter_name: str) -> str:
    return parameter_name.rpartition(".")[0] or "(the model itself)"


def _called_twice(trace: Trace, name: str, names: list[str], first: int, second: int) -> str | None:
    module = _module_name(name)
    ran_in = {call.block for call in trace.calls if call.name == module}
    if not {first, second} <= ran_in:
        return None
    return (
        f"module {module!r} is called in both; block {names[first]!r} ends at {names[first]!r}: "
        "cut elsewhere"
    )


def _way_round(
    trace: Trace, name: str, parameter: Tensor, names: list[str], first: int, second: int
) -> str:
    """Name the module whose output goes round the cut and the module that takes it in."""
    later = [call for call in trace.calls if call.block > first]
    consumer = next((call for call in later if _takes_in(call, parameter)), None)
    target = names[second] if consumer is None else consumer.name
    fed = consumer.inputs if consumer else _model_outputs(trace, second)
    source = _module_name(name)
    for call in reversed([call for call in trace.calls if call.block == first]):
        outputs = [tensor for tensor in call.outputs if tensor.requires_grad]
        if any(any(_reaches(tensor, outputs)) for tensor in fed):
            source = call.name
            break
    return (
        f"the output of module {source!r} goes round the cut at {names[first]!r} into "
        f"{target!r} (a skip connection); cut where one tensor carries everything"
    )


def _model_outputs(trace: Trace, block: int) -> list[Tensor]:
    output = trace.block_outputs[block]
    return [select_logits(output) if block == len(trace.handed_on) else select_feature(output)]


def _takes_in(call: Call, parameter: Tensor) -> bool:
    return any(_reaches(tensor, [parameter])[0] for tensor in call.inputs)
