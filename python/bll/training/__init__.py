"""Training runs: options, loop, checkpoints, results."""

from __future__ import annotations

from bll.errors import CheckpointError
from bll.training.checkpoint import load_checkpoint, save_checkpoint
from bll.training.config import TrainConfig
from bll.training.history import EpochRecord
from bll.training.run import Run
from bll.training.trainer import Observer, Trainer, TrainingError

__all__ = [
    "CheckpointError",
    "EpochRecord",
    "Observer",
    "Run",
    "TrainConfig",
    "Trainer",
    "TrainingError",
    "load_checkpoint",
    "save_checkpoint",
]
