"""Pictures of what the executor did: lanes against time."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

from bll_kernels.pipeline.events import Event
from bll_kernels.pipeline.schedule import Kind

# Distinct in grey and for colour-blind eyes (Okabe and Ito).
COLOURS = {
    Kind.FORWARD: "#56B4E9",
    Kind.LOSS: "#F0E442",
    Kind.BACKWARD: "#D55E00",
    Kind.UPDATE: "#009E73",
}


def draw_timeline(runs: Mapping[str, Sequence[Event]], title: str) -> bytes:
    """PNG with a panel for each run on one time scale; a lane is a block, the first on top.

    Args:
        runs: Events by name of the run, in the order from top to bottom; every run starts at 0.
        title: Text above the panels; it should say the conditions.

    Raises:
        ValueError: There is no run, or one has no events.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    if not runs or not all(runs.values()):
        raise ValueError("runs: expected one or more runs with events")
    lanes = {run: 1 + max(event.block for event in events) for run, events in runs.items()}
    height = 1.1 + sum(0.5 + 0.22 * count for count in lanes.values())
    figure = Figure(figsize=(10.0, height), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=9)
    panels = figure.subplots(
        len(runs), 1, sharex=True, squeeze=False, height_ratios=list(lanes.values())
    )[:, 0]
    for panel, (run, events) in zip(panels, runs.items(), strict=True):
        first = min(event.start for event in events)
        last = max(event.end for event in events)
        names = {event.block: event.block_name for event in events}
        for kind, colour in COLOURS.items():
            own = [event for event in events if event.kind is kind]
            panel.barh(
                [event.block for event in own],
                [(event.end - event.start) / 1e6 for event in own],
                left=[(event.start - first) / 1e6 for event in own],
                height=0.8,
                color=colour,
                edgecolor="black",
                linewidth=0.2,
            )
        panel.axvline((last - first) / 1e6, color="black", linewidth=0.8, linestyle=":")
        panel.set_title(f"{run}: {(last - first) / 1e6:.1f} ms", fontsize=9, loc="left")
        panel.set_yticks(sorted(names), [names[block] for block in sorted(names)], fontsize=8)
        panel.set_ylim(lanes[run] - 0.5, -0.5)
        panel.grid(axis="x", alpha=0.3)
    panels[-1].set_xlabel("time, ms")
    panels[-1].set_xlim(left=0)
    handles = [Patch(facecolor=colour, label=kind.value) for kind, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
