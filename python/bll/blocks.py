"""Where a model is cut: from names, a count or nothing to the modules that end each block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn

from bll.balance import balanced_ends
from bll.features import FeatureSpec


@dataclass(frozen=True)
class Block:
    """One block of a wrapped model.

    Attributes:
        name: Name of the module that ends it; `output` for the last block.
        cut: The same name, or None for the last block.
        parameters: Names of the model's parameters that this block trains.
        output_shape: Shape of the block's feature with the example's batch size.
        activation_bytes: Bytes of the outputs of its modules, for the example.
        feature: How its feature is read; None for the last block and for rules without local loss.
        hands_on_copy: Whether the next block gets a copy, since it writes in place.
    """

    name: str
    cut: str | None
    parameters: tuple[str, ...] = ()
    output_shape: tuple[int, ...] = ()
    activation_bytes: int = 0
    feature: FeatureSpec | None = None
    hands_on_copy: bool = False


@dataclass(frozen=True)
class Unit:
    """Neighbouring modules that no automatic cut parts; `members[-1]` is where one may be cut."""

    members: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Whether the named module is a member or inside one."""
        return any(name == member or name.startswith(member + ".") for member in self.members)


def last_block_name(cuts: Sequence[str]) -> str:
    """Return the name of the block after the last cut, unlike any cut's name."""
    return "output" if "output" not in cuts else "output()"


def find_cuts(
    model: nn.Module,
    blocks: Sequence[str] | int | None,
    unit_cost: Callable[[Unit], int] | None = None,
) -> tuple[str, ...]:
    """Return the names of the modules that end every block but the last.

    Args:
        model: The model.
        blocks: Names in execution order, none for a single block; or the number of blocks, the
            last included; or None for one block per child of an `nn.Sequential`, or of the longest
            `nn.ModuleList` or `nn.Sequential` inside. Where children count, one that holds a
            weight (a parameter of two or more dimensions) opens a block; activations, norms and
            the like join it.
        unit_cost: What a count balances; None is the number of parameters.

    Raises:
        TypeError: `blocks` is none of these.
        ValueError: An unknown or repeated name, or a count the model cannot give.
    """
    if blocks is None:
        units = _longest_container(model)
        return tuple(unit.members[-1] for unit in units[:-1])
    if isinstance(blocks, (bool, str)) or not isinstance(blocks, (int, Sequence)):
        raise TypeError(f"blocks: expected a list of names, a count or None, got {blocks!r}")
    if isinstance(blocks, int):
        return _balanced(_top_units(model), blocks, unit_cost or _parameter_cost(model))
    return _checked_names(model, blocks)


def _checked_names(model: nn.Module, blocks: Sequence[str]) -> tuple[str, ...]:
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


def _has_weight(module: nn.Module) -> bool:
    return any(parameter.dim() >= 2 for parameter in module.parameters())


def _grouped(children: Sequence[tuple[str, nn.Module]]) -> list[Unit]:
    groups: list[list[str]] = []
    weighted = False
    for name, child in children:
        opens = _has_weight(child)
        if not groups or (opens and weighted):
            groups.append([])
            weighted = False
        groups[-1].append(name)
        weighted = weighted or opens
    return [Unit(tuple(group)) for group in groups]


def _prefixed(prefix: str, module: nn.Module) -> list[tuple[str, nn.Module]]:
    start = prefix + "." if prefix else ""
    return [(start + name, child) for name, child in module.named_children()]


def _longest_container(model: nn.Module) -> list[Unit]:
    if isinstance(model, nn.Sequential):
        return _grouped(_prefixed("", model))
    best: list[Unit] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Sequential, nn.ModuleList)):
            units = _grouped(_prefixed(name, module))
            best = units if len(units) > len(best) else best
    if len(best) < 2:
        raise ValueError(
            "blocks: the model holds no nn.Sequential or nn.ModuleList of two or more weighted "
            "modules to cut at; expected a list of module names or a count"
        )
    return best


def _top_units(model: nn.Module) -> list[Unit]:
    children: list[tuple[str, nn.Module]] = []
    for name, child in model.named_children():
        expand = not isinstance(model, nn.Sequential) and isinstance(
            child, (nn.Sequential, nn.ModuleList)
        )
        children += _prefixed(name, child) if expand else [(name, child)]
    return _grouped(children)


def _parameter_cost(model: nn.Module) -> Callable[[Unit], int]:
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return lambda unit: sum(size for name, size in sizes.items() if unit.covers(name))


def _balanced(units: list[Unit], count: int, cost: Callable[[Unit], int]) -> tuple[str, ...]:
    """Cut the units into `count` runs such that the costliest run is as cheap as can be."""
    if not 1 <= count <= len(units):
        raise ValueError(
            f"blocks: expected a count from 1 to {len(units)} (the model's weighted modules), "
            f"got {count}; name the modules to cut elsewhere"
        )
    ends = balanced_ends([cost(unit) for unit in units], count)
    return tuple(units[end].members[-1] for end in ends)
