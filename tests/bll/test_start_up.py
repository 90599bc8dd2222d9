"""What `bll` may import before it has something to do, and what `import bll` then offers."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import bll
import bll_kernels

#: An import of any of these raises ImportError.
HEAVY = ("torch", "triton", "numpy", "matplotlib", "sklearn")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--help"], "train"),
        (["--version"], f"bll {bll_kernels.__version__}"),
        (["train", "--help"], "--dataset"),
        (["doctor", "--help"], "--json"),
    ],
    ids=" ".join,
)
def test_help_needs_no_torch(words: list[str], expected: str) -> None:
    blocked = f"sys.modules.update(dict.fromkeys({HEAVY!r}))"
    done = run(f"import sys; {blocked}; from bll.cli import main; sys.exit(main({words!r}))")
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout


def test_a_submodule_does_not_hide_the_function_of_its_name() -> None:
    shared = {module.name for module in pkgutil.iter_modules(bll.__path__)} & set(bll.__all__)
    assert shared == {"executor", "wrap"}  # _Package.__setattr__ names them
    for name in shared:
        importlib.import_module(f"bll.{name}")
        assert callable(getattr(bll, name))
    done = run("import bll.wrap, bll.executor, bll; bll.wrap.__call__; bll.executor.__call__")
    assert done.returncode == 0, done.stderr


def test_the_package_offers_its_public_names_and_no_others() -> None:
    assert set(bll.__all__) <= set(dir(bll))
    namespace: dict[str, object] = {}
    exec("from bll import *", namespace)
    assert set(bll.__all__) <= set(namespace)
    with pytest.raises(AttributeError, match="no attribute 'rap'"):
        bll.rap  # type: ignore[attr-defined] # noqa: B018
