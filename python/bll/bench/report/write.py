"""Writes a report into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bll.atomic import write_atomically
from bll.bench.report.figures import pictures
from bll.bench.report.markdown import accuracy_lines, markdown, training_lines
from bll.bench.report.page import page, table_from_markdown
from bll.bench.report.read import read

PAGE, TABLE = "report.html", "report.md"


def write_report(paths: Sequence[Path], out: Path) -> list[Path]:
    """Reads measurements and writes the page, the tables and the pictures.

    Args:
        paths: Files, or folders that are searched.
        out: Folder to write to, made if need be.

    Returns:
        What was written.

    Raises:
        ValueError: A path holds nothing that is known.
        OSError: The folder cannot be written.
    """
    found = read(paths)
    made = pictures(found)
    tables = []
    if found.trainings:
        tables.append(table_from_markdown(list(training_lines(found.trainings))))
    if found.accuracy:
        tables.append(table_from_markdown(list(accuracy_lines(found.accuracy))))
    out.mkdir(parents=True, exist_ok=True)
    files = {out / PAGE: page(found, made, "\n".join(tables)).encode()}
    files[out / TABLE] = markdown(found).encode()
    files |= {out / f"{picture.name}.png": picture.png for picture in made}
    for path, content in files.items():
        write_atomically(path, content)
    return list(files)
