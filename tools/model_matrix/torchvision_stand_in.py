"""Lets timm import where torchvision does not, as beside a CPU build of torch.

timm's models use of torchvision only the names of a few classes, at import; what transforms and
data sets it also takes from there is not used here. Nothing happens where torchvision imports.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any


class _StandIn(type):
    """A class with any attribute, each another such class."""

    def __getattr__(cls, name: str) -> Any:
        return _make(name)


def _make(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _StandIn(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(
        self, name: str, path: Any, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        module.__getattr__ = _make
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        module.__version__ = "0"


def install() -> None:
    """Make `import timm` work, with the real torchvision if that imports."""
    if any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        sys.meta_path.insert(0, _Finder())
