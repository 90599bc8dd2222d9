"""The chain of a model's parts between which an automatic cut may fall."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from bll.balance import balanced_ends

Named = tuple[str, nn.Module]


@dataclass(frozen=True)
class Unit:
    """Neighbouring modules that no automatic cut parts; `members[-1]` is where one may be cut."""

    members: tuple[str, ...]

    def covers(self, name: str) -> bool:
        """Whether the named module is a member or inside one."""
        return any(name == member or name.startswith(member + ".") for member in self.members)


def has_weight(module: nn.Module) -> bool:
    """Whether the module holds a parameter of two or more dimensions."""
    return any(parameter.dim() >= 2 for parameter in module.parameters())


def is_container(module: nn.Module) -> bool:
    """Whether the module is a list of modules."""
    return isinstance(module, (nn.Sequential, nn.ModuleList))


def grouped(children: Sequence[Named]) -> list[Unit]:
    """Group neighbours so that every unit has one weighted module, its first or after others.

    One that holds a weight opens a unit; activations, norms and the like join it.
    """
    groups: list[list[str]] = []
    weighted = False
    for name, child in children:
        opens = has_weight(child)
        if not groups or (opens and weighted):
            groups.append([])
            weighted = False
        groups[-1].append(name)
        weighted = weighted or opens
    return [Unit(tuple(group)) for group in groups]


def prefixed(prefix: str, module: nn.Module) -> list[Named]:
    """Return a module's children with their full names."""
    start = prefix + "." if prefix else ""
    return [(start + name, child) for name, child in module.named_children()]


def stages(model: nn.Module) -> list[Unit]:
    """Return three or more weighted containers that are children of one module, as in a ResNet.

    Their names are the units; none if there is no such module.
    """
    for name, module in model.named_modules():
        if is_container(module):
            continue
        found = [(n, c) for n, c in prefixed(name, module) if is_container(c) and has_weight(c)]
        if len(found) >= 3:
            return [Unit((child_name,)) for child_name, _ in found]
    return []


def longest_container(model: nn.Module) -> list[Unit]:
    """Return the units of the container with most of them; one inside another does not count.

    None if no container has two.
    """
    if isinstance(model, nn.Sequential):
        return grouped(prefixed("", model))
    found = [units for units in _outermost(model) if len(units) >= 2]
    return max(found, key=len, default=[])


def _outermost(model: nn.Module, prefix: str = "") -> Iterator[list[Unit]]:
    for name, child in prefixed(prefix, model):
        units = grouped(prefixed(name, child)) if is_container(child) else []
        if len(units) >= 2:
            yield units
        else:
            yield from _outermost(child, name)


def top_children(model: nn.Module, prefix: str = "") -> list[Named]:
    """Return the modules a count cuts between: containers, and what holds one, are opened.

    The elements of a container stay whole.
    """
    if isinstance(model, nn.Sequential):
        return prefixed(prefix, model)
    children: list[Named] = []
    for name, child in prefixed(prefix, model):
        if is_container(child):
            children += prefixed(name, child)
        elif next(_outermost(child, name), None) is not None:
            children += top_children(child, name)
        else:
            children.append((name, child))
    return children


def balanced(units: list[Unit], count: int, cost: Callable[[Unit], float]) -> tuple[str, ...]:
    """Cut the units into `count` runs such that the costliest run is as cheap as can be.

    Returns:
        The names after which to cut.

    Raises:
        ValueError: There are fewer units than that.
    """
    if not units:
        raise ValueError(
            f"blocks: the model has no child modules with weights to cut after, got {count} blocks"
        )
    if not 1 <= count <= len(units):
        raise ValueError(
            f"blocks: expected a count from 1 to {len(units)} (the model's weighted modules), "
            f"got {count}; name the modules to cut elsewhere"
        )
    ends = balanced_ends([cost(unit) for unit in units], count)
    return tuple(units[end].members[-1] for end in ends)


def parameter_cost(model: nn.Module) -> Callable[[Unit], float]:
    """Return the cost of a unit in numbers of parameters."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return lambda unit: sum(size for name, size in sizes.items() if unit.covers(name))


def automatic_cuts(model: nn.Module) -> list[tuple[str, ...]]:
    """Return the ways to cut a model that is given without cuts, best first.

    After the modules that timm names in `feature_info`; after each of three or more containers
    beside each other; between the weighted modules of the longest container. The last of each is
    left open, so that it ends with the model. A model that is an `nn.Sequential` is cut between its
    own weighted modules.

    Raises:
        ValueError: There is nothing to cut at.
    """
    if isinstance(model, nn.Sequential) and not hasattr(model, "feature_info"):
        return [tuple(unit.members[-1] for unit in longest_container(model)[:-1])]
    containers = (stages(model), longest_container(model))
    chains = [_feature_names(model), *([u.members[-1] for u in units] for units in containers)]
    cuts = [tuple(names[:-1]) for names in chains if len(names) >= 2]
    if not cuts:
        raise ValueError(
            "blocks: the model holds no nn.Sequential or nn.ModuleList of two or more weighted "
            "modules to cut at; expected a list of module names or a count"
        )
    return cuts


def _feature_names(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None)
    records = getattr(info, "info", info)
    if not isinstance(records, (list, tuple)):
        return []
    known = {name for name, _ in model.named_modules() if name}
    named = [record.get("module") for record in records if isinstance(record, Mapping)]
    return list(dict.fromkeys(str(name) for name in named if name in known))
