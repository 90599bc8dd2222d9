"""Checks what a wheel asks of the Python, the torch and the system it is installed on.

    python tools/audit_wheel.py dist/*.whl

`_C` must be of the limited API (abi3) and import nothing of torch but the C shims of its stable
ABI; no library may carry a path of the machine it was built on; and the wheel's tag must be that
of a manylinux platform, unless --local is given. Uses `nm` and `readelf` of binutils.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

#: Undefined symbols that belong to torch's C++ (c10, at, torch), whose ABI changes.
UNSTABLE = re.compile(r"^_ZN?K?(?:St\d+\w*)?(?:3c10|2at|5torch)")
#: Of Python, all that starts so, but what is not in the limited API.
NOT_LIMITED = re.compile(r"^(_Py_(?!Dealloc|NoneStruct|TrueStruct|FalseStruct)|PyUnicode_AsUTF8$)")


def undefined(library: Path) -> list[str]:
    """Symbols a library expects others to define."""
    command = ["nm", "-D", "--undefined-only", "--format=posix", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line.split()[0].split("@")[0] for line in done.stdout.splitlines() if line.strip()]


def run_paths(library: Path) -> list[str]:
    """Folders a library would search for others."""
    done = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    )
    found = re.findall(r"R(?:UN)?PATH\).*\[(.*)\]", done.stdout)
    return [path for paths in found for path in paths.split(":")]


def complaints_about(library: Path) -> list[str]:
    """What is wrong with one library."""
    wrong = [
        f"{library.name} searches {path}"
        for path in run_paths(library)
        if not path.startswith("$ORIGIN")
    ]
    if not library.name.startswith("_C"):
        return wrong
    if ".abi3." not in library.name:
        wrong.append(f"{library.name} is not of the limited API")
    for symbol in undefined(library):
        if UNSTABLE.match(symbol):
            wrong.append(f"{library.name} needs {symbol} of torch's C++ ABI")
        if NOT_LIMITED.match(symbol):
            wrong.append(f"{library.name} needs {symbol}, which is not in Python's limited API")
    return wrong


def audit(wheel: Path, *, local: bool) -> list[str]:
    """What is wrong with a wheel."""
    wrong = []
    if not local and "manylinux" not in wheel.name:
        wrong.append(f"{wheel.name}: expected a manylinux tag (auditwheel repair)")
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
        libraries = sorted(Path(folder, "bll_kernels").glob("*.so"))
        names = {library.name.split(".")[0] for library in libraries}
        wrong += [f"{wheel.name}: {name} is missing" for name in sorted({"_C", "_core"} - names)]
        for library in libraries:
            wrong += [f"{wheel.name}: {line}" for line in complaints_about(library)]
    return wrong


def main() -> int:
    """Returns 0 where nothing is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument(
        "--local", action="store_true", help="the wheel was built outside a container"
    )
    options = parser.parse_args()
    wrong = [line for wheel in options.wheels for line in audit(wheel, local=options.local)]
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(options.wheels)} wheels: limited API, stable ABI, no foreign paths")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
