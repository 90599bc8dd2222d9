"""``bll doctor``."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bll.atomic import write_atomically
from bll.commands.errors import CommandError
from bll.rules.registry import rule_names
from bll.training.machine import processor_name
from bll_kernels.diagnostics import report

_TRAINING_PACKAGES = ("numpy", "safetensors", "scikit-learn", "matplotlib", "typer", "rich")


def doctor(file: Path | None, *, as_json: bool) -> None:
    """Report versions, backends and what each function will use.

    Args:
        file: Where to write the JSON; standard output when ``None``.
        as_json: Write JSON instead of tables.

    Raises:
        CommandError: A file was named without ``--json``, or cannot be written.
    """
    if file is not None and not as_json:
        raise CommandError(f"file: {file} was named without --json")
    diagnosis = diagnose()
    if not as_json:
        _print_tables(diagnosis)
        return
    text = json.dumps(diagnosis, indent=2) + "\n"
    if file is None:
        print(text, end="")
        return
    try:
        write_atomically(file, text.encode())
    except OSError as error:
        raise CommandError(f"file: {file} could not be written: {error.strerror}") from error


def diagnose() -> dict[str, Any]:
    """The kernels' own report, and what training needs besides, as values JSON can hold."""
    packages = {name: _version(name) for name in _TRAINING_PACKAGES}
    return {
        **report(),
        "processor": processor_name(),
        "training_packages": packages,
        "rules": list(rule_names()),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _print_tables(diagnosis: Mapping[str, Any]) -> None:
    console = Console(highlight=False)
    versions = Table("what", "version")
    for name, version in (diagnosis["versions"] | diagnosis["training_packages"]).items():
        versions.add_row(name, version or "not installed")
    machine = diagnosis["platform"]
    versions.add_row("machine", f"{machine['system']} {machine['machine']}")
    versions.add_row("processor", f"{diagnosis['processor']}, {machine['threads']} threads")
    versions.add_row("CUDA device", machine["cuda_device"] or "none")
    for name, value in sorted((diagnosis["build"] or {}).items()):
        versions.add_row(f"built for: {name}", escape(str(value)))
    console.print(versions)
    backends = Table("backend", "devices", "usable")
    for name, backend in diagnosis["backends"].items():
        state = "yes" if backend["usable"] else escape(f"no: {backend['reason']}")
        backends.add_row(name, ", ".join(backend["devices"]), state)
    console.print(backends)
    functions = Table("function", "will use")
    for name, served in diagnosis["functions"].items():
        uses = ", ".join(f"{device}: {backend}" for device, backend in served.items())
        functions.add_row(name, uses)
    console.print(functions)
