"""Pictures of memory, energy, schedules and accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bll.bench.report.figures import (
    COLOURS,
    Picture,
    conditions_of,
    new_figure,
    slug,
    timed,
    to_png,
)

#: The source of pictures of several training runs.
TRAININGS = "training runs"
_OPERATIONS = {"forward": 0, "loss": 1, "backward": 2, "update": 3}


def memory(run: dict[str, Any]) -> Iterator[Picture]:
    """Peak bytes over the blocks in flight, and of the forms that have no such number."""
    entries = [e for e in run["entries"] if not e["rejected"] and "memory" in e]
    if not entries:
        return
    figure = new_figure(4.6 * min(len(entries), 2), 3.4 * -(-len(entries) // 2))
    panels = figure.subplots(-(-len(entries) // 2), min(len(entries), 2), squeeze=False)
    for axes in list(panels.flat)[len(entries) :]:
        axes.set_axis_off()
    for axes, entry in zip(panels.flat, entries, strict=False):
        rows = [row for row in entry["memory"] if row["peak_bytes"] is not None]
        deep = sorted((r["depth"], r["peak_bytes"] / 2**20) for r in rows if r["depth"] is not None)
        if deep:
            axes.plot(*zip(*deep, strict=True), marker="o", color=COLOURS[0], label="executor")
        for index, row in enumerate(r for r in rows if r["depth"] is None):
            colour = COLOURS[(index + 1) % len(COLOURS)]
            axes.axhline(row["peak_bytes"] / 2**20, color=colour, linestyle="--", label=row["form"])
        axes.set_ylim(bottom=0)
        axes.set_title(entry["name"], fontsize=8, loc="left")
        axes.set_xlabel("blocks in flight", fontsize=8)
        axes.set_ylabel("MiB above the level before", fontsize=8)
        axes.set_xticks([depth for depth, _ in deep])
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.25)
    handles: dict[str, Any] = {}
    for axes in panels.flat:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=3,
        fontsize=7,
        frameon=False,
    )
    yield Picture(
        run["source"],
        slug(f"memory {run['source']}"),
        "Peak memory of a training step",
        "How far memory in use rises above its level during one step: activations, gradients and "
        "temporaries; parameters and optimiser states are below the level. " + conditions_of(run),
        to_png(figure),
    )


def energy(run: dict[str, Any]) -> Iterator[Picture]:
    """Net joules per step with the idle part on top, for entries that have them."""
    entries = [entry for entry in timed(run) if entry.get("energy")]
    if not entries:
        return
    bars = [
        (f"{entry['name']}\n{name}", found)
        for entry in entries
        for name, found in entry["energy"].items()
    ]
    figure = new_figure(8.2, 0.9 + 0.42 * len(bars))
    axes = figure.subplots()
    for position, (_, found) in enumerate(bars):
        net, gross = found["net_joules_per_step"], found["gross_joules_per_step"]
        axes.barh(position, net, color=COLOURS[0], label="net" if not position else None)
        axes.barh(
            position,
            gross - net,
            left=net,
            color="white",
            edgecolor=COLOURS[0],
            hatch="///",
            label="idle share" if not position else None,
        )
        points = found["trials"]
        axes.plot(points, [position] * len(points), "o", color="black", markersize=2.5)
    axes.set_yticks(range(len(bars)), [label for label, _ in bars], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("joules per call (dots: gross, every trial)", fontsize=8)
    axes.tick_params(axis="x", labelsize=7)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7, frameon=False)
    counters = ", ".join(sorted({found["counter"] for _, found in bars}))
    bound = max(found["error_bound"] for _, found in bars)
    yield Picture(
        run["source"],
        slug(f"energy {run['source']}"),
        "Energy",
        f"Counter: {counters}; windows begin and end at its ticks, error from their edges at most "
        f"{bound:.1%}. {conditions_of(run)}",
        to_png(figure),
    )


def timelines(run: dict[str, Any]) -> Iterator[Picture]:
    """Lanes over time, for entries that hold a schedule."""
    from matplotlib.patches import Patch

    for entry in run["entries"]:
        if entry["rejected"] or not entry.get("timeline"):
            continue
        operations = entry["timeline"]["operations"]
        lanes = 1 + max(op["lane"] for op in operations)
        figure = new_figure(9.0, 0.9 + 0.42 * lanes)
        axes = figure.subplots()
        whole = 1e3 * max(op["end"] for op in operations)
        for op in operations:
            start, length = 1e3 * op["start"], 1e3 * (op["end"] - op["start"])
            colour = COLOURS[_OPERATIONS[op["kind"]]]
            axes.barh(
                op["lane"], length, left=start, color=colour, edgecolor="white", linewidth=0.4
            )
            if op["kind"] == "backward" and length > 0.04 * whole:
                axes.text(
                    start + length / 2,
                    op["lane"],
                    f"{op['block']}.{op['micro_batch']}",
                    ha="center",
                    va="center",
                    fontsize=5,
                    color="white",
                )
        axes.set_yticks(range(lanes), [f"worker {lane}" for lane in range(lanes)], fontsize=7)
        axes.invert_yaxis()
        axes.set_xlabel("ms", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        handles = [Patch(color=COLOURS[i], label=name) for name, i in _OPERATIONS.items()]
        figure.legend(
            handles=handles, loc="outside lower center", ncols=4, fontsize=7, frameon=False
        )
        yield Picture(
            run["source"],
            slug(f"timeline {entry['name']} {run['source']}"),
            f"Schedule: {entry['name']}",
            f"{entry['timeline']['what']} (block.micro-batch on the backward passes). "
            + conditions_of(run),
            to_png(figure),
        )


def training_curves(trainings: list[dict[str, Any]]) -> Iterator[Picture]:
    """Test accuracy over the epochs and over seconds, all runs of a data set on one picture."""
    for dataset in dict.fromkeys(run["dataset"] for run in trainings):
        runs = [run for run in trainings if run["dataset"] == dataset]
        figure = new_figure(9.0, 3.8)
        left, right = figure.subplots(1, 2, sharey=True)
        for index, run in enumerate(runs):
            colour = COLOURS[index % len(COLOURS)]
            label = f"{run['source']}: {run['model']}, {run['rule']}"
            accuracy = [epoch["test_accuracy"] for epoch in run["history"]]
            left.plot(
                [epoch["epoch"] for epoch in run["history"]],
                accuracy,
                marker="o",
                markersize=3,
                color=colour,
                label=label,
            )
            spent, seconds = 0.0, []
            for epoch in run["history"]:
                spent += epoch["seconds"]
                seconds.append(spent)
            right.plot(seconds, accuracy, marker="o", markersize=3, color=colour)
        left.set_ylabel("test accuracy, %", fontsize=8)
        left.set_xlabel("epoch", fontsize=8)
        right.set_xlabel("seconds of training", fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.25)
            axes.tick_params(labelsize=7)
        left.legend(fontsize=7)
        facts = "; ".join(
            f"{run['source']}: {run['device_name']}, {run['dtype']}, {run['threads']} threads, "
            f"batch {run['batch_size']}, seed {run['seed']}, commit "
            f"{(run['commit'] or 'unknown')[:10]}"
            for run in runs
        )
        yield Picture(
            TRAININGS,
            slug(f"training {dataset}"),
            f"Training on {dataset}",
            f"Accuracy on the whole test set after every epoch. {facts}.",
            to_png(figure),
        )


def accuracy(rows: list[dict[str, str]]) -> Iterator[Picture]:
    """Test accuracy of every rule, one dot per seed."""
    sets = dict.fromkeys((row["source"], row["dataset"], row["model"]) for row in rows)
    if not sets:
        return
    figure = new_figure(4.6 * min(len(sets), 2), 3.4 * -(-len(sets) // 2))
    panels = figure.subplots(-(-len(sets) // 2), min(len(sets), 2), squeeze=False)
    for axes in list(panels.flat)[len(sets) :]:
        axes.set_axis_off()
    for axes, key in zip(panels.flat, sets, strict=False):
        chosen = [r for r in rows if (r["source"], r["dataset"], r["model"]) == key]
        rules = list(dict.fromkeys(_rule(row) for row in chosen))
        for index, rule in enumerate(rules):
            values = [float(row["test_accuracy"]) for row in chosen if _rule(row) == rule]
            mean = sum(values) / len(values)
            axes.plot(values, [index] * len(values), "o", color=COLOURS[0], markersize=5, alpha=0.7)
            axes.plot([mean], [index], "|", color="black", markersize=14)
        axes.set_yticks(range(len(rules)), rules, fontsize=7)
        axes.set_ylim(len(rules) - 0.5, -0.5)
        axes.set_title(f"{key[1]}, {key[2]}", fontsize=8, loc="left")
        axes.set_xlabel("test accuracy, %", fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        axes.grid(alpha=0.25)
    first = rows[0]
    facts = ", ".join(
        f"{name.replace('_', ' ')} {first[name]}"
        for name in ("blocks", "dtype", "threads", "backend", "device_name", "torch")
        if first.get(name)
    )
    yield Picture(
        first["source"],
        slug(f"accuracy {first['source']}"),
        "Accuracy by rule",
        f"Dots: seeds; bar: their mean. {first['source']}: {facts}; commit "
        f"{first.get('commit', 'unknown')[:10]}.",
        to_png(figure),
    )


def _rule(row: dict[str, str]) -> str:
    return f"{row['rule']} ({row['family']})" if row["family"] else row["rule"]
