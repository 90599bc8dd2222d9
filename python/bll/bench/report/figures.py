"""The pictures of a report. Each is a PNG with a caption that carries its conditions."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bll.bench.report.read import Measurements
from bll.bench.text import HEADINGS, condition_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Entries on one picture of bars.
PER_PICTURE = 8
# Colours that differ for the colour-blind too (Okabe and Ito).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#555555")


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        source: The file its numbers come from.
        name: Of its file, without the ending.
        title: For people.
        caption: What is shown and under which conditions.
        png: The picture.
    """

    source: str
    name: str
    title: str
    caption: str
    png: bytes


def new_figure(width: float, height: float) -> Figure:
    """An empty figure that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=140, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Figure) -> bytes:
    """The figure as a file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def slug(text: str) -> str:
    """A file name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def conditions_of(run: dict[str, Any]) -> str:
    """The conditions of a run as one caption."""
    return f"{run['source']}: " + " ".join(condition_lines(run["conditions"]))


def timed(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The entries of a run that have times and were not rejected."""
    return [entry for entry in run["entries"] if not entry["rejected"] and "ours" in entry]


def _ratios_of_rounds(entry: dict[str, Any], peer: dict[str, Any]) -> list[float]:
    ours, theirs = entry["ours"].get("samples"), peer.get("samples")
    if not ours or not theirs or len(ours) != len(theirs):
        return []
    return [p / o for p, o in zip(theirs, ours, strict=True)]


def _bars(axes: Axes, entry: dict[str, Any], colours: dict[str, str], last: bool) -> None:
    names = list(entry["peers"])
    for position, name in enumerate(names):
        peer = entry["peers"][name]
        if "missing" in peer:
            axes.text(1.02, position, "missing", va="center", fontsize=7, color="#777777")
            continue
        axes.barh(position, peer["ratio"] - 1, left=1, color=colours[name], height=0.7)
        axes.plot(
            [peer["ratio_low"], peer["ratio_high"]], [position] * 2, color="black", linewidth=1.2
        )
        points = _ratios_of_rounds(entry, peer)
        axes.plot(points, [position] * len(points), "o", color="black", markersize=2, alpha=0.5)
        axes.annotate(
            f"{peer['ratio']:.2f}",
            (max([peer["ratio_high"], 1.0, *points]), position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_title(entry["name"], fontsize=8, loc="left", pad=3)
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.tick_params(axis="x", labelsize=7, labelbottom=last, bottom=last)
    axes.tick_params(axis="y", length=0)
    for side in ("top", "right", "left", *(() if last else ("bottom",))):
        axes.spines[side].set_visible(False)


def _ratio_range(entries: Sequence[dict[str, Any]]) -> tuple[float, float]:
    found = [1.0]
    for entry in entries:
        for peer in entry["peers"].values():
            if "missing" not in peer:
                found += [peer["ratio_low"], peer["ratio_high"], *_ratios_of_rounds(entry, peer)]
    return min(found) * 0.85, max(found) * 1.5


def speed_ups(run: dict[str, Any]) -> Iterator[Picture]:
    """Bars of how many times longer the peers take, with quartiles and every round."""
    entries = [entry for entry in timed(run) if entry["peers"]]
    for group in dict.fromkeys(entry["group"] for entry in entries):
        chosen = [entry for entry in entries if entry["group"] == group]
        peers = list(dict.fromkeys(name for entry in chosen for name in entry["peers"]))
        colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(peers)}
        for start in range(0, len(chosen), PER_PICTURE):
            part = chosen[start : start + PER_PICTURE]
            heights = [len(entry["peers"]) + 1.3 for entry in part]
            figure = new_figure(8.2, 0.6 + 0.19 * sum(heights))
            panels = figure.subplots(
                len(part), 1, sharex=True, height_ratios=heights, squeeze=False
            )
            low, high = _ratio_range(part)
            for axes, entry in zip(panels[:, 0], part, strict=True):
                axes.set_xscale("log")
                axes.set_xlim(low, high)
                _bars(axes, entry, colours, entry is part[-1])
            _plain_ticks(panels[-1, 0], low, high)
            panels[-1, 0].set_xlabel(
                "time of the peer by time of ours (right of 1: ours is faster)", fontsize=8
            )
            number = "" if len(chosen) <= PER_PICTURE else f" {start // PER_PICTURE + 1}"
            yield Picture(
                run["source"],
                slug(f"speed-up {group}{number} {run['source']}"),
                f"Speed-up: {HEADINGS.get(group, group).lower()}{number}",
                "Bars: median over the rounds; line: quartiles; dots: single rounds. "
                + conditions_of(run),
                to_png(figure),
            )


def _plain_ticks(axes: Axes, low: float, high: float) -> None:
    ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if low <= t <= high]
    axes.set_xticks(ticks, [f"{t:g}" for t in ticks])
    axes.set_xticks([], minor=True)


def roofline(run: dict[str, Any]) -> Iterator[Picture]:
    """Achieved rates against the measured copy of the same size, and the measured product."""
    entries = timed(run)
    copies = [e for e in entries if e.get("bytes") and e.get("copy_bytes_per_second")]
    products = [e for e in entries if (e.get("matmul_flops_per_second") or 0) > 0]
    if not copies and not products:
        return
    names = dict.fromkeys(_function(e) for e in [*copies, *products])
    colours = {name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)}
    figure = new_figure(9.4, 4.2)
    left, right = figure.subplots(1, 2)
    limit = sorted({(e["bytes"], e["copy_bytes_per_second"] / 1e9) for e in copies})
    points = [(_function(e), e["bytes"], e["bytes_per_second"] / 1e9) for e in copies]
    _limit_panel(left, points, limit, "measured copy", colours)
    _label_axes(left, "counted bytes of a call", "GB/s", "B")
    points = []
    for entry in products:
        flops = entry["operations"]["matmul"]
        points.append((_function(entry), flops, flops / entry["ours"]["seconds"] / 1e9))
    best = max((e["matmul_flops_per_second"] / 1e9 for e in products), default=0.0)
    counts = [flops for _, flops, _ in points]
    ends = [(min(counts), best), (max(counts), best)] if counts else []
    _limit_panel(right, points, ends, "measured product", colours)
    _label_axes(right, "counted operations of a call", "GFLOP/s", "")
    handles = dict(zip(*reversed(left.get_legend_handles_labels()), strict=True))
    handles |= dict(zip(*reversed(right.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=5,
        fontsize=7,
        frameon=False,
    )
    yield Picture(
        run["source"],
        slug(f"roofline {run['source']}"),
        "Achieved against measured limits",
        "Left: counted bytes per second of every entry, and of a plain copy that moves as many "
        "bytes. Right: operations per second of its matrix products, and of one large product. "
        "Nothing may lie above the limits. " + conditions_of(run),
        to_png(figure),
    )


def _function(entry: dict[str, Any]) -> str:
    found = entry.get("config", {}).get("function") or entry["name"].split()[0].rstrip(",")
    return "training step" if entry["group"] == "step" else str(found)


def _limit_panel(
    axes: Axes,
    points: list[tuple[str, float, float]],
    limit: list[tuple[float, float]],
    label: str,
    colours: dict[str, str],
) -> None:
    if not points:
        axes.text(0.5, 0.5, "nothing counted", ha="center", transform=axes.transAxes)
    if limit:
        axes.plot(*zip(*limit, strict=True), color="black", marker="o", markersize=2, label=label)
    for name, colour in colours.items():
        own = [(x, y) for function, x, y in points if function == name]
        if own:
            axes.plot(*zip(*own, strict=True), "o", color=colour, markersize=5, label=name)


def _label_axes(axes: Axes, x: str, y: str, unit: str) -> None:
    from matplotlib.ticker import EngFormatter, FormatStrFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0)))
    axes.xaxis.set_major_formatter(EngFormatter(unit))
    axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.grid(which="major", alpha=0.25)
    axes.tick_params(labelsize=7)


def pictures(found: Measurements) -> list[Picture]:
    """Every picture that the measurements have something for."""
    from bll.bench.report import more_figures as more

    made: list[Picture] = []
    for run in found.runs:
        made += [*speed_ups(run), *roofline(run)]
        made += [*more.memory(run), *more.energy(run), *more.timelines(run)]
    made += more.training_curves(found.trainings)
    made += more.accuracy(found.accuracy)
    return made
