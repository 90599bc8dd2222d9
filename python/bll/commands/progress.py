"""What a person sees while a run trains and when it is over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from bll.training.trainer import Trainer

_REFRESH_SECONDS = 0.2


class ConsoleObserver:
    """A progress bar on a terminal, and one line per epoch everywhere; silent when ``quiet``."""

    def __init__(self, trainer: Trainer, *, quiet: bool) -> None:
        console = Console(stderr=True, quiet=quiet, highlight=False)
        self._lines = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "steps",
            total=trainer.steps_per_epoch * trainer.config.epochs,
            completed=trainer.steps_done,
            epoch=self._epoch(trainer),
            loss="-",
        )
        self._last_refresh = 0.0

    def __enter__(self) -> ConsoleObserver:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def on_step(self, trainer: Trainer) -> None:
        """Move the bar; the loss is read only a few times a second, as reading it waits."""
        now = time.monotonic()
        if self._bar.disable or now - self._last_refresh < _REFRESH_SECONDS:
            return
        self._last_refresh = now
        self._bar.update(
            self._task,
            completed=trainer.steps_done,
            epoch=self._epoch(trainer),
            # Losses of a distributed run come together at the end of an epoch.
            loss=f"{trainer.losses.means()[0]:.4f}" if trainer.losses.steps else "-",
        )

    def on_epoch(self, trainer: Trainer) -> None:
        """Print the epoch's result."""
        record = trainer.history[-1]
        self._lines.print(
            f"epoch {record.epoch}/{trainer.config.epochs}  loss {record.train_loss:.4f}  "
            f"test accuracy {record.test_accuracy:.2f} %  {record.seconds:.1f} s"
        )

    def _epoch(self, trainer: Trainer) -> str:
        epochs = trainer.config.epochs
        return f"{min(len(trainer.history) + 1, epochs)}/{epochs}"


def print_certificate(trainer: Trainer) -> None:
    """Print how the blocks run, and which parameters they see, to standard error."""
    executor = trainer.executor
    if executor is None:
        return
    console = Console(stderr=True, highlight=False)
    console.print(
        f"executor {executor.mode}, {executor.depth} of {len(executor.blocks)} blocks in flight, "
        f"{executor.micro_batches} micro-batches; parameters seen, against one block at a time:"
    )
    for line in executor.certificate:
        console.print(f"  {line}", soft_wrap=True)


def _epochs(results: Mapping[str, Any]) -> str:
    if results["stop_at"] is None:
        return str(results["epochs"])
    found = "reached" if results["reached"] else "not reached"
    return (
        f"{results['epochs_trained']} of at most {results['epochs']} "
        f"({results['stop_at']:g} % {found})"
    )


def print_results(results: Mapping[str, Any], out: Path) -> None:
    """Print the final table to standard output."""
    family = f", {results['family']}" if results["family"] else ""
    rows = {
        "data": results["dataset"],
        "model": f"{results['model']}, {results['params']:,} parameters",
        "blocks": f"{results['blocks']}, cut after {', '.join(results['cuts']) or 'none'}",
        "rule": f"{results['rule']}{family}",
        "device": (
            f"{results['device']} ({results['device_name']}), {results['dtype']}, "
            f"{results['threads']} thread{'s' if results['threads'] != 1 else ''}"
        ),
        "executor": results["executor_choice"] or results["executor"],
        "seed": str(results["seed"]),
        "epochs": f"{_epochs(results)}, batch {results['batch_size']}, lr {results['lr']:g}",
        "time": (
            f"{results['seconds']:.1f} s with tests, step {results['step_ms_median']:.2f} ms, "
            f"{results['samples_per_s']:.0f} images/s"
        ),
        "peak memory": (
            f"{results['peak_memory_bytes'] / 2**20:.0f} MiB of {results['peak_memory_of']}"
        ),
        "test accuracy": f"{results['test_accuracy']:.2f} %",
        "files": str(out),
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        bold = "bold" if name == "test accuracy" else None
        table.add_row(name, value, style=bold)
    Console(highlight=False).print(table)
