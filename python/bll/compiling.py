"""torch.compile for the parts of a wrapped model: every module of a block by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from bll.hooks import wrapped_handle


class CompiledForward:
    """The compiled forward of one module, in the place of its `forward`.

    Only the forward is compiled: hooks stay outside, and parameters keep their names. It copies and
    pickles with its module; a copy compiles anew at its first call.
    """

    def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
        self.module = module
        self.options = options
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module's forward, compiled at the first call."""
        if self._compiled is None:
            plain = type(self.module).forward.__get__(self.module)
            self._compiled = torch.compile(plain, **self.options)
        return self._compiled(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def compile_blocks(model: nn.Module, **options: Any) -> list[str]:
    """Compile the modules of every block of a wrapped model, each by itself. In place.

    Cuts, losses and what the model's own forward does between modules stay as they are. Equal
    layers share one compiled graph. `unwrap` takes the compiled forwards away.

    Args:
        model: A wrapped model whose blocks are known (wrapped with `example`, or run once).
        **options: Of `torch.compile`, such as `mode` or `backend`.

    Returns:
        Names of the compiled modules.

    Raises:
        ValueError: The model is not wrapped or not ready; it watches its operations
            (`cut_tensors`), which a compiled graph would hide; or a module has a forward of its
            own instance already.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    if handle.cut_tensors:
        raise ValueError("model: cut_tensors watches every operation, a compiled graph hides them")
    modules = dict(model.named_modules())
    names = [
        name
        for block in handle.blocks
        for top in block.modules
        for name in _callable_parts(top, modules[top])
    ]
    for name in names:
        if "forward" in vars(modules[name]):
            raise ValueError(f"model: {name!r} already has a forward of its own")
    for name in names:
        modules[name].forward = CompiledForward(modules[name], options)
    return names


def _callable_parts(name: str, module: nn.Module) -> list[str]:
    """Return the module's name, or those of its elements where it only holds them."""
    if not isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        # Without a parameter there is too little in it to gain from a compiled graph.
        return [name] if next(module.parameters(), None) is not None else []
    parts = [_callable_parts(f"{name}.{key}", child) for key, child in module.named_children()]
    return [part for found in parts for part in found]


def remove_compiled(model: nn.Module) -> None:
    """Give every module compiled here its own forward back."""
    for module in model.modules():
        if isinstance(vars(module).get("forward"), CompiledForward):
            del module.forward
