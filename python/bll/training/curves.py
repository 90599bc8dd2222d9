"""Pictures of a run."""

from __future__ import annotations

import io
from collections.abc import Sequence

from bll.training.history import EpochRecord


def draw_curves(history: Sequence[EpochRecord], title: str) -> bytes:
    """PNG with two panels over the epochs: loss of every block, and test accuracy.

    Args:
        history: At least one epoch.
        title: Text above the panels; it should say the conditions of the run.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9.0, 3.8), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    losses, accuracy = figure.subplots(1, 2)
    epochs = [record.epoch for record in history]
    for name in history[0].block_losses:
        values = [record.block_losses[name] for record in history]
        losses.plot(epochs, values, marker="o", markersize=3, label=name)
    losses.set_ylabel("mean training loss of the block")
    losses.legend(fontsize=8)
    values = [record.test_accuracy for record in history]
    accuracy.plot(epochs, values, marker="o", markersize=3, color="black")
    accuracy.annotate(
        f"{values[-1]:.2f} %",
        (epochs[-1], values[-1]),
        textcoords="offset points",
        xytext=(0, -12),
        ha="right",
        fontsize=9,
    )
    accuracy.set_ylabel("test accuracy, %")
    for panel in (losses, accuracy):
        panel.set_xlabel("epoch")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
