"""A run in its directory: begin or continue it, save it, finish it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bll.bench.energy_run import RunEnergy
from bll.data import load_dataset
from bll.errors import CheckpointError
from bll.training.checkpoint import INDEX, load_checkpoint, save_checkpoint
from bll.training.options import new_config, resumed_config
from bll.training.outputs import (
    CHECKPOINT,
    CURVES,
    METRICS,
    MODEL,
    SUMMARY,
    write_metrics,
    write_results,
)
from bll.training.snapshot import capture, restore
from bll.training.trainer import Observer, Trainer


class Run:
    """A training run and the directory it writes to.

    Args:
        out: The directory.
        trainer: The run, new or restored.
    """

    def __init__(self, out: Path, trainer: Trainer) -> None:
        self.out = out
        self.trainer = trainer
        self.energy: RunEnergy | None = None

    @classmethod
    def begin(cls, out: Path, given: Mapping[str, Any], *, overwrite: bool = False) -> Run:
        """Prepare a new run.

        Args:
            out: Directory to write to, created if need be.
            given: Options by field name of ``TrainConfig``; absent ones take their default.
            overwrite: Remove the files of a run that is already there.

        Raises:
            ValueError: An option, a data file or the directory is not usable. Nothing was
                changed then.
        """
        config = new_config(given)
        if not overwrite and any(
            (out / name).exists() for name in (f"{CHECKPOINT}/{INDEX}", SUMMARY)
        ):
            raise ValueError(
                f"out: {out} already holds a run; --resume continues it, --overwrite replaces it"
            )
        trainer = Trainer(config, load_dataset(config.dataset, config.data_dirs))
        if not trainer.leads:
            return cls(out, trainer)
        _make_directory(out)
        if overwrite:
            _remove_run(out)
        return cls(out, trainer)

    @classmethod
    def resume(cls, out: Path, given: Mapping[str, Any]) -> Run:
        """Prepare to continue the run in ``out`` from its checkpoint.

        Args:
            out: Directory of the run.
            given: Options; those of the run when absent, and equal to them when given.

        Raises:
            ValueError: There is no usable checkpoint, an option differs from the run's, or a
                data file is not usable.
        """
        tensors, record = load_checkpoint(out / CHECKPOINT)
        if "config" not in record:
            raise CheckpointError(f"{out / CHECKPOINT}: not the checkpoint of a training run")
        config = resumed_config(record["config"], given)
        trainer = Trainer(config, load_dataset(config.dataset, config.data_dirs))
        restore(trainer, tensors, record)
        return cls(out, trainer)

    def save(self) -> None:
        """Write the checkpoint, and the metrics of the epochs that are over, if this rank leads."""
        if not self.trainer.leads:
            return
        save_checkpoint(self.out / CHECKPOINT, *capture(self.trainer))
        write_metrics(self.out, self.trainer)

    def train(self, observer: Observer, should_stop: Callable[[], bool]) -> bool:
        """Train to the end, or save a checkpoint when ``should_stop`` asks for it.

        A checkpoint is also written after every epoch.

        Returns:
            Whether the run is finished.

        Raises:
            TrainingError: Training diverged; the last checkpoint is that of the epoch before.
            CheckpointError: A checkpoint could not be written; the previous one is untouched.
        """
        self.energy = RunEnergy(self.trainer.device, resumed=self.trainer.steps_done > 0)
        finished = self.trainer.run(_SavingObserver(self, observer), should_stop)
        self.energy.poll()
        if not finished:
            self.save()
        return finished

    def finish(self) -> dict[str, Any] | None:
        """Write weights, metrics, curves and summary of a finished run; return the summary.

        None on a rank that does not lead.
        """
        if not self.trainer.leads:
            return None
        write_metrics(self.out, self.trainer)
        return write_results(self.out, self.trainer, self.energy)


class _SavingObserver:
    def __init__(self, run: Run, observer: Observer) -> None:
        self._run = run
        self._observer = observer

    def on_step(self, trainer: Trainer) -> None:
        self._observer.on_step(trainer)

    def on_epoch(self, trainer: Trainer) -> None:
        if self._run.energy is not None:
            self._run.energy.poll()
        self._run.save()
        self._observer.on_epoch(trainer)


def _make_directory(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / CHECKPOINT).mkdir(exist_ok=True)
    except OSError as error:
        raise ValueError(f"out: {out} is not a usable directory: {error.strerror}") from error


def _remove_run(out: Path) -> None:
    # The index goes first: without it the rest is no checkpoint.
    (out / CHECKPOINT / INDEX).unlink(missing_ok=True)
    for name in (SUMMARY, METRICS, MODEL, CURVES):
        (out / name).unlink(missing_ok=True)
    shutil.rmtree(out / CHECKPOINT)
    (out / CHECKPOINT).mkdir()
