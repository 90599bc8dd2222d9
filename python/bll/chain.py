"""Which models are a chain of modules whose blocks can be run apart from each other."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bll.rules.base import Rule


def chain(model: nn.Module, cuts: Sequence[str]) -> list[tuple[str, nn.Module]]:
    """Return the modules that run one after the other, none of which a cut is inside of.

    Raises:
        TypeError: The model is no `nn.Sequential`, or is cut inside a module that is none.
    """
    if not _is_plain_sequential(model):
        raise TypeError(
            f"model: expected an nn.Sequential, whose blocks can run apart; "
            f"got {type(model).__name__}"
        )
    return _in_order(model, "", cuts)


def why_not_apart(model: nn.Module, cuts: Sequence[str], rule: Rule) -> str | None:
    """Return why the executor may not run the model's blocks apart; None: it may."""
    if "downstream" in rule.reads:
        return f"rule {rule.name!r} reads gradients of later blocks"
    if not _is_plain_sequential(model):
        return f"no nn.Sequential: the forward of {type(model).__name__} calls the blocks"
    try:
        _in_order(model, "", cuts)
    except TypeError as error:
        return str(error).partition("got ")[2]
    return None


def _is_plain_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _in_order(
    container: nn.Module, prefix: str, cuts: Sequence[str]
) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []
    for key, child in container.named_children():
        name = prefix + key
        inside = [cut for cut in cuts if cut.startswith(name + ".")]
        if name == "bll":
            continue
        if not inside:
            found.append((name, child))
        elif _is_plain_sequential(child) and not child._forward_hooks and name not in cuts:
            found += _in_order(child, name + ".", cuts)
        else:
            raise TypeError(
                f"model: expected cuts between modules of an nn.Sequential without hooks, got "
                f"{inside[0]!r} inside a {type(child).__name__}"
            )
    return found
