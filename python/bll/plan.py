"""From what the user asks for (names, a count, nothing) to the cuts of one model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from bll.blocks import Block, find_cuts
from bll.locality import LocalityError, survey_blocks
from bll.measure import unit_seconds
from bll.rules.base import Rule
from bll.shallow import shallow_blocks
from bll.trace import Trace, run_traced
from bll.units import Unit, automatic_cuts, balanced, grouped, parameter_cost, top_children

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
BALANCES = ("parameters", "bytes", "flops", "time")


@dataclass(frozen=True)
class Plan:
    """The cuts, and the blocks between them where there were inputs to survey them with."""

    cuts: tuple[str, ...]
    blocks: tuple[Block, ...] | None = None


def plan_blocks(
    model: nn.Module,
    blocks: Sequence[str] | int | None,
    rule: Rule,
    inputs: Inputs | None,
    *,
    balance: str | None,
    cut_tensors: bool,
) -> Plan:
    """Decide where to cut, and survey the blocks if there are inputs.

    Args:
        model: The model, which is not changed.
        blocks: See `bll.wrap`.
        rule: The rule.
        inputs: Sample inputs, positional and by keyword.
        balance: What a count balances; None: bytes with inputs, else parameters.
        cut_tensors: Whether what goes round a border is detached too.

    Raises:
        TypeError: `blocks` is of the wrong type.
        ValueError: An unknown or repeated name, a count the model cannot give, or nowhere to cut.
        LocalityError: See `survey_blocks`.
    """
    counted = isinstance(blocks, int) and not isinstance(blocks, bool)
    _check_balance(balance, counted, inputs)
    if blocks is None and rule.local:
        return _automatic(model, rule, inputs, cut_tensors)
    if blocks is None:
        cuts: tuple[str, ...] = ()  # a network that is not cut needs no container to cut at
    elif counted and inputs is not None:
        cuts = _counted(model, cast(int, blocks), balance, inputs)
    else:
        cuts = find_cuts(model, blocks)
    if inputs is None:
        return Plan(cuts)
    return Plan(cuts, survey_blocks(model, cuts, rule, *inputs, cut_tensors=cut_tensors))


def _check_balance(balance: object, counted: bool, inputs: Inputs | None) -> None:
    if balance is None:
        return
    if balance not in BALANCES:
        raise ValueError(f"balance: expected one of {', '.join(BALANCES)}, got {balance!r}")
    if not counted:
        raise ValueError(f"balance: {balance!r} balances a count of blocks, which is not given")
    if inputs is None and balance != "parameters":
        raise ValueError(f"balance: {balance!r} needs an example")


def _counted(model: nn.Module, count: int, balance: str | None, inputs: Inputs) -> tuple[str, ...]:
    children = top_children(model)
    names = [name for name, _ in children]

    def analyse(trace: Trace) -> tuple[list[str], Callable[[Unit], float], Callable[[Unit], float]]:
        sizes = [(call.name, call.output_bytes) for call in trace.calls]
        flops = trace.flops.by_module
        return (
            _once(trace.cuts),
            lambda unit: sum(size for name, size in sizes if unit.covers(name)),
            lambda unit: sum(flops.get(member, 0) for member in unit.members),
        )

    order, in_bytes, in_flops = run_traced(model, names, *inputs, detach=False, analyse=analyse)
    modules = dict(children)
    units = grouped([(name, modules[name]) for name in order])
    costs = {
        "parameters": parameter_cost(model),
        None: in_bytes,
        "bytes": in_bytes,
        "flops": in_flops,
    }
    if balance == "time":
        return balanced(units, count, _seconds(model, order, inputs))
    return balanced(units, count, costs[balance])


def _once(reached: list[str]) -> list[str]:
    """Names reached exactly once, in execution order."""
    counts = Counter(reached)
    return [name for name in reached if counts[name] == 1]


def _seconds(model: nn.Module, names: list[str], inputs: Inputs) -> Callable[[Unit], float]:
    seconds = unit_seconds(model, names, *inputs)
    return lambda unit: sum(seconds[member] for member in unit.members)


def _automatic(model: nn.Module, rule: Rule, inputs: Inputs | None, cut_tensors: bool) -> Plan:
    """Take the first of the candidates that is local, joining blocks that a gradient connects."""
    candidates = automatic_cuts(model)
    if inputs is None:
        return Plan(candidates[0])
    refusal: LocalityError | None = None
    for names in candidates:
        reached = run_traced(
            model, names, *inputs, detach=False, analyse=lambda trace: _once(trace.cuts)
        )
        if names and not reached:
            continue
        try:
            return _joined(model, tuple(reached), rule, inputs, cut_tensors)
        except LocalityError as error:
            refusal = refusal or error
    raise refusal or LocalityError(
        f"blocks: the forward pass calls none of {', '.join(candidates[0])} exactly once"
    )


def _joined(
    model: nn.Module, cuts: tuple[str, ...], rule: Rule, inputs: Inputs, cut_tensors: bool
) -> Plan:
    refusal: LocalityError | None = None
    if not cuts:
        return Plan(cuts, survey_blocks(model, cuts, rule, *inputs, cut_tensors=cut_tensors))
    while cuts:
        try:
            blocks = survey_blocks(model, cuts, rule, *inputs, cut_tensors=cut_tensors)
        except LocalityError as error:
            refusal = refusal or error
            if not error.cuts:
                raise refusal from None
            cuts = tuple(name for name in cuts if name not in error.cuts)
            continue
        stem_alone = blocks[0] in shallow_blocks(blocks)
        if stem_alone and len(cuts) > 1:
            cuts = cuts[1:]
        elif stem_alone and refusal is not None:
            break  # all that would be left of the cuts is one behind the stem
        else:
            return Plan(cuts, blocks)
    raise refusal or LocalityError("blocks: the forward pass calls no module to cut at once")
