"""Which gradient crosses a border, and by which modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bll.features import select_feature, select_logits
from bll.trace import Call, Trace


class Leak(NamedTuple):
    """A parameter that two blocks' losses reach.

    Attributes:
        parameter: Its name.
        first: Index of the earlier block.
        second: Index of the later block.
        reason: How, naming both modules.
    """

    parameter: str
    first: int
    second: int
    reason: str


def reaches(output: Tensor, inputs: Sequence[Tensor]) -> list[bool]:
    """Return, for each input, whether a gradient of the output arrives there."""
    if not output.requires_grad or not inputs:
        return [False] * len(inputs)
    gradients = torch.autograd.grad(output.sum(), inputs, retain_graph=True, allow_unused=True)
    return [gradient is not None for gradient in gradients]


def find_leak(trace: Trace, names: list[str], reach: list[set[str]]) -> Leak | None:
    """Return the first parameter that more than one block's loss reaches, and why.

    Args:
        trace: The recorded forward pass.
        names: The blocks' names.
        reach: The parameters that each block's loss reaches.
    """
    for name, parameter in trace.model.named_parameters():
        blocks = [index for index, reached in enumerate(reach) if name in reached]
        if len(blocks) > 1:
            first, second = blocks[0], blocks[1]
            reason = (
                _tied(trace, name, parameter)
                or _called_twice(trace, name, names, first, second)
                or _way_round(trace, name, parameter, names, first, second)
            )
            return Leak(name, first, second, reason)
    return None


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
        if any(any(reaches(tensor, outputs)) for tensor in fed):
            source = call.name
            break
    return (
        f"the output of module {source!r} goes round the cut at {names[first]!r} into "
        f"{target!r} (a skip connection); cut where one tensor carries everything, or wrap with "
        "cut_tensors=True"
    )


def _model_outputs(trace: Trace, block: int) -> list[Tensor]:
    output = trace.block_outputs[block]
    return [select_logits(output) if block == len(trace.handed_on) else select_feature(output)]


def _takes_in(call: Call, parameter: Tensor) -> bool:
    return any(reaches(tensor, [parameter])[0] for tensor in call.inputs)
