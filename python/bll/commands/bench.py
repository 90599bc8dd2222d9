"""``bll bench``."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bll.atomic import write_atomically
from bll.bench.run import (
    QUICK_ROUNDS,
    QUICK_SECONDS,
    ROUNDS,
    make_bench,
    problems,
    run_tasks,
)
from bll.bench.suites import SUITES, tasks_under
from bll.bench.table import print_tables
from bll.commands.errors import CommandError


def bench(
    file: Path | None,
    *,
    quick: bool,
    as_json: bool,
    suites: Sequence[str],
    device: str,
    rounds: int | None,
    budget: float | None,
    energy: bool,
) -> None:
    """Measure, print the tables, and write the JSON.

    Args:
        file: Where the JSON goes; standard output when ``None``.
        quick: The short suite.
        as_json: Write JSON. On standard output it takes the place of the tables.
        suites: Names of suites to run instead of all.
        device: "cpu" or "cuda".
        rounds: Samples of each form.
        budget: Seconds after which what is left is left out.
        energy: Measure energy too, where a counter can be read.

    Raises:
        CommandError: An option is not usable or the file cannot be written (2), or an entry missed
            its accuracy gate, was impossibly fast, or failed (1).
    """
    if file is not None and not as_json:
        raise CommandError(f"file: {file} was named without --json")
    if quick and suites:
        raise CommandError("suite: --quick and --suite exclude each other")
    seconds = QUICK_SECONDS if quick and budget is None else budget
    samples = rounds if rounds is not None else QUICK_ROUNDS if quick else ROUNDS
    names = ["quick"] if quick else list(suites or SUITES)
    try:
        prepared = make_bench(device, samples, seconds, energy=energy)
        tasks = [task for name in names for task in tasks_under(name, device)]
    except ValueError as error:
        raise CommandError(str(error)) from error
    found = run_tasks(prepared, tasks, _progress)
    text = json.dumps(found, indent=1) + "\n"
    if as_json and file is None:
        print(text, end="")
    else:
        print_tables(found, Console(highlight=False))
    if file is not None:
        try:
            write_atomically(file, text.encode())
        except OSError as error:
            raise CommandError(f"file: {file} could not be written: {error.strerror}") from error
    wrong = problems(found)
    if wrong:
        raise CommandError(f"{len(wrong)} rejected: {'; '.join(wrong)}", exit_code=1)


def _progress(name: str, entry: dict[str, Any] | None) -> None:
    if entry is None:
        print(f"measuring {name} ...", file=sys.stderr, flush=True)
