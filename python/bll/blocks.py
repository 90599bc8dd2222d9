"""What a block is, and where named cuts fall."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from bll.features import FeatureSpec
from bll.units import Unit, automatic_cuts, balanced, grouped, parameter_cost, top_children


@dataclass(frozen=True)
class Block:
    """One block of a wrapped model. What depends on shapes is that of the example.

    Attributes:
        name: Name of the module that ends it; `output` for the last block.
        cut: The same name, or None for the last block.
        modules: Names of the modules that ran in it, the largest that ran in no other block.
        parameters: Names of the model's parameters that this block trains.
        parameter_count: How many numbers those are.
        layers: How many modules with a weight (of two or more dimensions) ran in it.
        output_shape: Shape of the block's feature with the example's batch size.
        activation_bytes: Bytes of the outputs of its modules, for the example.
        flops: Floating-point operations of its forward pass, 2 per multiply-add.
        feature: How its feature is read; None for the last block and for rules without local loss.
        hands_on_copy: Whether the next block gets a copy, since it writes in place.
    """

    name: str
    cut: str | None
    modules: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()
    parameter_count: int = 0
    layers: int = 0
    output_shape: tuple[int, ...] = ()
    activation_bytes: int = 0
    flops: int = 0
    feature: FeatureSpec | None = None
    hands_on_copy: bool = False


def last_block_name(cuts: Sequence[str]) -> str:
    """Return the name of the block after the last cut, unlike any cut's name."""
    return "output" if "output" not in cuts else "output()"


def pending_blocks(cuts: Sequence[str]) -> tuple[Block, ...]:
    """Return blocks by name only, for a model whose shapes are not known yet."""
    names = (*cuts, last_block_name(cuts))
    return tuple(Block(name, cut) for name, cut in zip(names, (*cuts, None), strict=True))


def find_cuts(
    model: nn.Module,
    blocks: Sequence[str] | int | None,
    unit_cost: Callable[[Unit], float] | None = None,
) -> tuple[str, ...]:
    """Return the names of the modules that end every block but the last, from the model alone.

    Args:
        model: The model.
        blocks: Names in execution order, none for a single block; or the number of blocks, the
            last included; or None for the first of `automatic_cuts`.
        unit_cost: What a count balances; None is the number of parameters.

    Raises:
        TypeError: `blocks` is none of these.
        ValueError: An unknown or repeated name, a count the model cannot give, or nowhere to cut.
    """
    if blocks is None:
        return automatic_cuts(model)[0]
    if isinstance(blocks, (bool, str)) or not isinstance(blocks, (int, Sequence)):
        raise TypeError(f"blocks: expected a list of names, a count or None, got {blocks!r}")
    if isinstance(blocks, int):
        cost = unit_cost or parameter_cost(model)
        return balanced(grouped(top_children(model)), blocks, cost)
    return checked_names(model, blocks)


def checked_names(model: nn.Module, blocks: Sequence[str]) -> tuple[str, ...]:
    """Return the names after which to cut.

    Raises:
        TypeError: One is no string.
        ValueError: An unknown or repeated name.
    """
    names = tuple(blocks)
    known = {name for name, _ in model.named_modules(remove_duplicate=False) if name}
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"blocks: expected module names, got {name!r}")
        if name not in known:
            near = ", ".join(sorted(known)[:20])
            raise ValueError(f"blocks: the model has no module {name!r}; it has {near}")
        if names.count(name) > 1:
            raise ValueError(f"blocks: {name!r} is named {names.count(name)} times")
    return names
