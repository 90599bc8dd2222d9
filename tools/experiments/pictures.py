"""Pictures of the tables."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from bll.atomic import write_atomically
from tools.experiments.page import finished, groups
from tools.experiments.table import read_rows

Row = Mapping[str, str]
_COLORS: Final = ("black", "tab:blue", "tab:orange", "tab:red", "tab:green", "tab:purple")


def draw(tables: Path, out: Path) -> list[Path]:
    """Draw a picture of every table that is there.

    Args:
        tables: Folder of the CSV files.
        out: Folder of the pictures, created if need be.

    Returns:
        The files.

    Raises:
        ValueError: There is no table.
    """
    out.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, picture in PICTURES.items():
        path = tables / f"{name}.csv"
        if path.is_file():
            figure = Figure(figsize=(7.0, 4.0), dpi=120, layout="constrained")
            FigureCanvasAgg(figure)
            picture(figure, read_rows(path))
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None})
            drawn.append(out / f"learning-{name}.png")
            write_atomically(drawn[-1], buffer.getvalue())
    if not drawn:
        raise ValueError(f"tables: {tables} holds none of {', '.join(PICTURES)}")
    return drawn


def _line(
    panel: Axes, places: Sequence[float], values: Sequence[list[float]], **style: Any
) -> None:
    """Means with the range of the seeds as bars."""
    means = [statistics.fmean(v) for v in values]
    below = [m - min(v) for m, v in zip(means, values, strict=True)]
    above = [max(v) - m for m, v in zip(means, values, strict=True)]
    panel.errorbar(places, means, yerr=[below, above], marker="o", ms=4, capsize=3, **style)


def _doubling(panel: Axes, places: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.xaxis.set_major_locator(FixedLocator(list(places)))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.set_xticklabels([str(place) for place in places])
    panel.grid(alpha=0.3)


def _rules(figure: Figure, rows: Sequence[Row]) -> None:
    panel = figure.subplots()
    found = {
        f"{rule} {options}".strip(): finished(runs)
        for (rule, options), runs in groups(rows, "rule", "rule_options").items()
    }
    names = sorted((n for n in found if found[n]), key=lambda n: statistics.fmean(found[n]))
    for place, name in enumerate(names):
        panel.plot(found[name], [place] * len(found[name]), "o", ms=5, color="tab:blue", alpha=0.7)
        panel.plot(statistics.fmean(found[name]), place, "|", ms=18, color="black")
    panel.set_yticks(range(len(names)), names)
    panel.set_xlabel(f"test accuracy, % ({_conditions(rows)})")
    panel.grid(alpha=0.3)


def _conditions(rows: Sequence[Row]) -> str:
    first = rows[0]
    return f"{first['dataset']}, {first['model']} width {first['width']}, {first['epochs']} epochs"


def _depth(figure: Figure, rows: Sequence[Row]) -> None:
    panel = figure.subplots()
    cells = groups(rows, "rule", "blocks")
    for color, rule in zip(_COLORS, dict.fromkeys(rule for rule, _ in cells), strict=False):
        blocks = sorted(int(b) for r, b in cells if r == rule and finished(cells[r, b]))
        values = [finished(cells[rule, str(b)]) for b in blocks]
        _line(panel, blocks, values, label=rule, color=color)
    _doubling(panel, sorted({int(row["blocks"]) for row in rows}))
    panel.set_xlabel(f"blocks ({_conditions(rows)})")
    panel.set_ylabel("test accuracy, %")
    panel.legend()


def _grid(figure: Figure, rows: Sequence[Row]) -> None:
    panel = figure.subplots()
    kinds: dict[str, dict[int, list[float]]] = {}
    for (text,), runs in groups(rows, "rule_options").items():
        kind, grid = json.loads(text)["pool"]
        kinds.setdefault(kind, {})[grid] = finished(runs)
    for color, (kind, grids) in zip(_COLORS, kinds.items(), strict=False):
        places = sorted(grid for grid in grids if grids[grid])
        _line(panel, places, [grids[grid] for grid in places], label=kind, color=color)
    _doubling(panel, sorted({grid for grids in kinds.values() for grid in grids}))
    panel.set_xlabel(f"pooling grid, cells per side ({_conditions(rows)})")
    panel.set_ylabel("test accuracy, %")
    panel.legend()


def _reversal(figure: Figure, rows: Sequence[Row]) -> None:
    panel = figure.subplots()
    main = [r for r in rows if r["lr"] == rows[0]["lr"] and not r["rule_options"]]
    cells = groups([r for r in main if r["rule"] == "bll" and r["steps_to_99"]], "blocks")
    blocks = sorted(int(b) for (b,) in cells)
    values = [[float(r["steps_to_99"]) for r in cells[(str(b),)]] for b in blocks]
    _line(panel, blocks, values, label="bll, a loss after each block", color="tab:blue")
    reference = [float(r["steps_to_99"]) for r in main if r["rule"] == "bp" and r["steps_to_99"]]
    panel.axhline(statistics.fmean(reference), color="black", linestyle="--", label="bp")
    _doubling(panel, blocks)
    width, batch = rows[0]["width"], rows[0]["batch_size"]
    panel.set_xlabel(f"blocks of 20 layers (one head, width {width}, batch {batch})")
    panel.set_ylabel("steps to 99 % of sequences")
    panel.set_ylim(bottom=0)
    panel.legend()


PICTURES: Final[dict[str, Callable[[Figure, Sequence[Row]], None]]] = {
    "rules": _rules,
    "depth": _depth,
    "grid": _grid,
    "reversal": _reversal,
}
