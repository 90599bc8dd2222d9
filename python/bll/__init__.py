"""Block-local learning for PyTorch models: wrap a model, train it with one ordinary loop.

model = bll.wrap(model, blocks=["layer1", "layer2"], num_classes=10, example=x)
out = model(x, y=labels)
out.loss.backward()
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bll._public import *  # noqa: F403
    from bll._public import __all__ as __all__
else:

    class _Package(ModuleType):
        """The package as a module that loads its public names, and torch with them, on demand.

        So `bll --help` answers without torch.
        """

        def __getattr__(self, name: str) -> object:
            if name.startswith("__") and name not in ("__all__", "__version__"):
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            if name == "distributed":
                return importlib.import_module("bll.distributed")
            public = importlib.import_module("bll._public")
            if name != "__all__" and name not in public.__all__:
                raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
            value = getattr(public, name)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: object) -> None:
            # The import system would put these submodules over the functions of their names.
            if not (name in ("executor", "wrap") and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *self.__all__})

    sys.modules[__name__].__class__ = _Package
