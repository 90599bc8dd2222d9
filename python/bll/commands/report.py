"""``bll report``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll.bench.report.compare import compare, lines
from bll.bench.report.read import read_run
from bll.bench.report.write import write_report
from bll.commands.errors import CommandError


def report(paths: Sequence[Path], out: Path, *, comparing: bool, threshold: float, by: str) -> None:
    """Write a report, or compare runs.

    Args:
        paths: Files and folders; with `comparing` the base run and one later run or more.
        out: Folder of the report.
        comparing: Compare instead of writing a report.
        threshold: Share by which an entry may become slower.
        by: "seconds" or "ratio".

    Raises:
        CommandError: A path or option is not usable (2), or an entry became slower or was lost (1).
    """
    try:
        if comparing:
            _compare(paths, threshold, by)
            return
        for path in write_report(paths, out):
            print(path)
    except ValueError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"out: {out} cannot be written: {error.strerror}") from error


def _compare(paths: Sequence[Path], threshold: float, by: str) -> None:
    if len(paths) < 2:
        raise ValueError(f"compare: expected a base run and one later or more, got {len(paths)}")
    if threshold < 0:
        raise ValueError(f"threshold: expected 0 or more, got {threshold:g}")
    base, *later = [read_run(path) for path in paths]
    found = compare(base, later, by)
    for line in lines(found, threshold, by):
        print(line)
    worse = found.regressions(threshold)
    if worse or found.missing:
        raise CommandError(
            f"{len(worse)} entries slower by more than {threshold:.0%}, {len(found.missing)} lost",
            exit_code=1,
        )
