"""Runs on image sets: `bll train` in this process, one row for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from bll.data import ImageData
from bll.training.config import TrainConfig
from bll.training.options import new_config
from bll.training.trainer import Trainer, TrainingError
from tools.experiments.families import FamiliesTrainer
from tools.experiments.first_defaults import rule_options
from tools.experiments.mixing import MixingTrainer
from tools.experiments.reach import ReachingTrainer

KEY: Final = ("dataset", "model", "width", "rule", "rule_options", "blocks", "epochs", "lr", "seed")
COLUMNS: Final = (
    *KEY,
    "family",
    "optimizer",
    "weight_decay",
    "schedule",
    "crop",
    "flip",
    "batch_size",
    "dtype",
    "device",
    "train_images",
    "params",
    "params_with_feedback",
    "test_accuracy",
    "best_test_accuracy",
    "train_loss",
)
#: Where runs stop at an accuracy: what they took is the result.
STOPPING: Final = ("to-accuracy",)
#: What trains in another way than `bll train`, by the column that tells its forms apart.
TRAINERS: Final[dict[str, Callable[[TrainConfig, ImageData, Any], Trainer]]] = {
    "reach": ReachingTrainer,
    "mixing": MixingTrainer,
    "families": FamiliesTrainer,
}


def layout(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Key and columns of an experiment's table."""
    if name in TRAINERS:
        return (*KEY, name), (*KEY, name, *COLUMNS[len(KEY) :])
    if name not in STOPPING:
        return KEY, COLUMNS
    key = (*KEY, "stop_at")
    return key, (*key, *COLUMNS[len(KEY) :], "epochs_trained", "reached")


class Diverged(Exception):
    """The loss is no longer a finite number."""


class _Silent:
    def on_step(self, trainer: Trainer) -> None:
        """Nothing to say."""

    def on_epoch(self, trainer: Trainer) -> None:
        """Nothing to say."""


def config_of(run: Mapping[str, Any]) -> TrainConfig:
    """The options of training that a run stands for."""
    options = {name: value for name, value in run.items() if name not in TRAINERS}
    return new_config({**options, "rule_options": rule_options(run)})


def train(run: Mapping[str, Any], data: ImageData) -> dict[str, Any]:
    """Train once.

    Args:
        run: Options by field name of `TrainConfig`.
        data: The image set.

    Returns:
        The row: the options as they were used, and the results.

    Raises:
        Diverged: The loss is not finite.
    """
    config = config_of(run)
    trainer = next(
        (make(config, data, run[name]) for name, make in TRAINERS.items() if name in run), None
    ) or Trainer(config, data)
    try:
        trainer.run(_Silent(), lambda: False)
    except TrainingError as error:
        raise Diverged(str(error)) from error
    record = config.to_record()
    own = [p.numel() for n, p in trainer.model.named_parameters() if not n.startswith("bll.")]
    return {
        **record,
        **{name: run.get(name) for name in (*KEY, *TRAINERS)},
        "family": trainer.family or "",
        "train_images": len(data.train_labels),
        "params": sum(own),
        "params_with_feedback": sum(p.numel() for p in trainer.model.parameters()),
        "test_accuracy": round(trainer.history[-1].test_accuracy, 3),
        "best_test_accuracy": round(max(e.test_accuracy for e in trainer.history), 3),
        "epochs_trained": len(trainer.history),
        "reached": trainer.has_reached,
        "train_loss": round(trainer.history[-1].train_loss, 5),
    }
