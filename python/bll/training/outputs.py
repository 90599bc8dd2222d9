"""The files a run leaves behind."""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bll.atomic import write_atomically
from bll.bench.energy_run import RunEnergy
from bll.training import machine
from bll.training.checkpoint import tensor_bytes
from bll.training.curves import draw_curves
from bll.training.history import EpochRecord
from bll.training.rule_options import options_text
from bll.training.trainer import Trainer

SUMMARY, METRICS, MODEL, CURVES = "summary.json", "metrics.csv", "model.safetensors", "curves.png"
CHECKPOINT = "checkpoint"
_RULE_STATE = "bll."
_NO_ENERGY = {
    "energy_j": None,
    "energy_reason": "nothing was trained in this process",
    "energy_counter": None,
}


def metrics_csv(history: Sequence[EpochRecord]) -> bytes:
    """One line per epoch: its numbers, then the mean loss of every block."""
    names = list(history[0].block_losses) if history else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    numbers = ["epoch", "train_loss", "test_accuracy", "seconds", "test_seconds"]
    writer.writerow([*numbers, *(f"loss/{name}" for name in names)])
    for record in history:
        losses = [record.block_losses[name] for name in names]
        writer.writerow([*(getattr(record, number) for number in numbers), *losses])
    return text.getvalue().encode()


def summary(trainer: Trainer, energy: RunEnergy | None = None) -> dict[str, Any]:
    """Everything a table needs to quote the run with its conditions."""
    config, history = trainer.config, trainer.history
    steps = trainer.timer.milliseconds()
    train_seconds = sum(record.seconds for record in history)
    images = len(history) * trainer.steps_per_epoch * config.batch_size
    commit, has_changes = machine.commit()
    return {
        "dataset": config.dataset,
        "model": config.model,
        "params": sum(
            p.numel()
            for name, p in trainer.model.named_parameters()
            if not name.startswith(_RULE_STATE)
        ),
        "params_with_feedback": sum(p.numel() for p in trainer.model.parameters()),
        "rule": config.rule,
        "family": trainer.family,
        "rule_options": config.rule_options,
        "blocks": config.block_count,
        "cuts": list(trainer.cuts),
        "width": config.width,
        "executor": config.executor,
        "executor_choice": _choice(trainer),
        "certificate": [str(line) for line in trainer.executor.certificate]
        if trainer.executor
        else None,
        "depth": trainer.depth,
        "micro_batches": config.micro_batches,
        "batched_blocks": config.batched_blocks,
        "device": config.device,
        "device_name": machine.device_name(trainer.device),
        "dtype": config.dtype,
        "threads": trainer.threads,
        "batch_size": config.batch_size,
        "lr": config.lr,
        "schedule": config.schedule,
        "optimizer": config.optimizer,
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "label_smoothing": config.label_smoothing,
        "crop": config.crop,
        "flip": config.flip,
        "seed": config.seed,
        "epochs": config.epochs,
        "epochs_trained": len(history),
        "stop_at": config.stop_at,
        "reached": trainer.has_reached,
        "test_accuracy": history[-1].test_accuracy,
        "history": [record.to_record() for record in history],
        "seconds": train_seconds + sum(record.test_seconds for record in history),
        "step_ms_median": statistics.median(steps),
        "samples_per_s": images / train_seconds,
        "peak_memory_bytes": machine.peak_memory_bytes(trainer.device),
        "peak_memory_of": "torch on the GPU" if trainer.device.type == "cuda" else "the process",
        **(energy.to_record() if energy is not None else _NO_ENERGY),
        "backends": machine.backends(trainer.device, trainer.compute_dtype),
        "versions": machine.versions(),
        "commit": commit,
        "commit_has_changes": has_changes,
    }


def _choice(trainer: Trainer) -> str | None:
    chosen = trainer.executor.choice if trainer.executor else None
    return None if chosen is None else str(chosen)


def write_metrics(out: Path, trainer: Trainer) -> None:
    """Replace ``metrics.csv``."""
    write_atomically(out / METRICS, metrics_csv(trainer.history))


def write_results(out: Path, trainer: Trainer, energy: RunEnergy | None = None) -> dict[str, Any]:
    """Write weights, curves and summary of a finished run.

    ``model.safetensors`` holds the network's own weights and buffers and nothing else, so equal
    weights are equal files.

    Returns:
        The summary.
    """
    weights = {
        name: tensor
        for name, tensor in trainer.model.state_dict().items()
        if not name.startswith(_RULE_STATE)
    }
    write_atomically(out / MODEL, tensor_bytes(weights))
    config = trainer.config
    options = f" ({options_text(config.rule_options)})" if config.rule_options else ""
    title = (
        f"{config.dataset}, {config.model}, {config.block_count} blocks, "
        f"rule {config.rule}{options}, seed {config.seed}, {config.dtype} on {config.device}"
    )
    write_atomically(out / CURVES, draw_curves(trainer.history, title))
    results = summary(trainer, energy)
    write_atomically(out / SUMMARY, (json.dumps(results, indent=2) + "\n").encode())
    return results
