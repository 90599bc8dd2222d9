"""The published table (Kappel et al., arXiv 2305.14974, Table 1), trained on a GPU from recipes.

Every run has a folder of its own with its checkpoint, so a call that reaches its deadline stops
between two steps, and the next one goes on there; two archives beside them hold all that it needs.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.gpu.record import ROOT, Record
from bll.atomic import write_atomically
from bll.data import DataError
from bll.training.checkpoint import INDEX
from bll.training.outputs import CHECKPOINT, SUMMARY
from bll.training.recipe import read_recipe
from bll.training.run import Run
from bll.training.trainer import Trainer, TrainingError

RECIPES: Final = ROOT / "examples" / "recipes"
#: Published test accuracies in percent; the cells in the order they are trained in.
PUBLISHED: Final = {
    "fashion-mnist-resnet18": {"bp": 92.7, "fa": 87.9, "pred-sim": 93.9, "bll": 94.2},
    "cifar-10-resnet50": {"bp": 94.0, "fa": 70.3, "pred-sim": 92.4, "bll": 92.6},
    "fashion-mnist-resnet50": {"bp": 93.4, "fa": 83.1, "pred-sim": 94.3, "bll": 94.3},
}
SEEDS: Final = (0, 1)
COLUMNS: Final = (
    "dataset", "model", "rule", "rule_options", "blocks", "seed", "test_accuracy", "published",
    "epochs", "seconds", "seconds_per_epoch", "samples_per_s", "energy_j", "peak_memory_bytes",
    "batch_size", "lr", "optimizer", "weight_decay", "schedule", "label_smoothing", "crop", "flip",
    "dtype", "device", "device_name", "commit", "commit_has_changes",
)  # fmt: skip
#: What a dry run changes: seconds instead of minutes, on the CPU, without files.
_DRY: Final = {
    "dataset": "digits", "model": "resnet10", "width": 4, "batch_size": 64, "epochs": 1,
    "device": "cpu", "dtype": "float32", "lr": 0.05,
}  # fmt: skip
#: Seconds kept back for the last checkpoint.
_MARGIN: Final = 10.0


class Unfinished(Exception):
    """Something of the table could not be trained."""


def run(
    record: Record,
    data_dirs: Sequence[str],
    *,
    deadline: float,
    epochs: int | None = None,
    dry: bool = False,
) -> tuple[str, int]:
    """Train what is missing until the deadline, and write ``table1.csv``.

    Args:
        record: Where progress is filed; the runs lie in ``table1`` of its folder (``table1-dry``).
        data_dirs: Folders searched for the data files, in order.
        deadline: Of ``time.monotonic()``.
        epochs: In place of the recipes'.
        dry: Tiny networks on digits, on the CPU.

    Returns:
        A note, and how many runs are left.

    Raises:
        Unfinished: A data file is missing, or training diverged; what else there is was trained.
    """
    runs = [(cell, rule, seed) for cell in PUBLISHED for seed in SEEDS for rule in PUBLISHED[cell]]
    # Apart, so that a run in earnest never takes a trial's for its own.
    root = record.folder / ("table1-dry" if dry else "table1")
    _unpack(root)
    failures: dict[str, str] = {}
    for cell, rule, seed in runs:
        if time.monotonic() > deadline - _MARGIN:
            break
        name = f"{cell}-{rule}"
        if cell in failures or name in failures:
            continue
        options = _options(name, data_dirs, epochs, dry) | {"seed": seed}
        try:
            _train(record, _folder(root, name, seed), options, deadline)
        except DataError as error:
            failures[cell] = str(error)
        except (ValueError, TrainingError) as error:
            failures[name] = str(error)
    finished = _write_table(record, root, runs)
    _pack(root)
    note = f"{finished} of {len(runs)} runs finished"
    if failures:
        raise Unfinished("; ".join([note, *(f"{k}: {v}" for k, v in failures.items())]))
    left = len(runs) - finished
    return (f"{note}; the same command goes on" if left else note), left


def _options(name: str, data_dirs: Sequence[str], epochs: int | None, dry: bool) -> dict[str, Any]:
    options = dict(read_recipe(RECIPES / f"{name}.toml").options)
    if dry:
        return options | _DRY
    options["data_dirs"] = tuple(data_dirs)
    if epochs is not None:
        options["epochs"] = epochs
    return options


def _folder(root: Path, name: str, seed: int) -> Path:
    return root / name / f"seed-{seed}"


class _Log:
    """Tells of every epoch."""

    def __init__(self, record: Record, place: Path) -> None:
        self._record = record
        self._name = f"{place.parent.name} {place.name}"

    def on_step(self, trainer: Trainer) -> None:
        """Nothing to say."""

    def on_epoch(self, trainer: Trainer) -> None:
        """One line."""
        last = trainer.history[-1]
        self._record.log(
            f"{self._name}: epoch {last.epoch} of {trainer.config.epochs}: "
            f"{last.test_accuracy:.2f} % in {last.seconds:.1f} s"
        )


def _train(record: Record, place: Path, options: dict[str, Any], deadline: float) -> None:
    """Begin or continue one run; it ends, or is saved at the deadline."""
    if (place / SUMMARY).is_file():
        return
    begun = (place / CHECKPOINT / INDEX).is_file()
    training = Run.resume(place, options) if begun else Run.begin(place, options)
    log = _Log(record, place)
    if training.train(log, lambda: time.monotonic() > deadline - _MARGIN):
        training.finish()


def _pack(root: Path) -> None:
    """Puts what another call needs into files beside the folder, whose own files lie deep.

    The summaries of finished runs, which are small, into one; what was begun, which is as large as
    a network with its optimiser, into another.
    """
    places = sorted(root.glob("*/seed-*"))
    finished = [place / SUMMARY for place in places if (place / SUMMARY).is_file()]
    begun = [place for place in places if not (place / SUMMARY).is_file()]
    for packed, wanted in zip(_archives(root), (finished, begun), strict=True):
        if not wanted:
            packed.unlink(missing_ok=True)
            continue
        part = packed.with_suffix(".part")
        with tarfile.open(part, "w") as archive:
            for path in wanted:
                archive.add(path, path.relative_to(root))
        part.replace(packed)


def _unpack(root: Path) -> None:
    """Restores the folder where only its archives were brought along."""
    if root.exists():
        return
    for packed in _archives(root):
        if packed.is_file():
            with tarfile.open(packed) as archive:
                archive.extractall(root, filter="data")


def _archives(root: Path) -> tuple[Path, Path]:
    """Of what is finished, and of what was begun."""
    return root.with_name(f"{root.name}-finished.tar"), root.with_name(f"{root.name}-begun.tar")


def _write_table(record: Record, root: Path, runs: Sequence[tuple[str, str, int]]) -> int:
    """Write the runs that are finished; return their number."""
    rows = []
    for cell, rule, seed in runs:
        path = _folder(root, f"{cell}-{rule}", seed) / SUMMARY
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        found["rule_options"] = json.dumps(found["rule_options"], sort_keys=True)
        # A copy of the tree without .git knows its commit only from who started it.
        found["commit"] = found["commit"] or record.now["commit"]
        found["published"] = PUBLISHED[cell][rule]
        trained = sum(epoch["seconds"] for epoch in found["history"])
        found["seconds_per_epoch"] = round(trained / found["epochs"], 3)
        rows.append({name: found[name] for name in COLUMNS})
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(root.with_suffix(".csv"), text.getvalue().encode())
    return len(rows)
