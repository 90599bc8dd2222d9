"""A trainer's whole state as tensors and plain values, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bll.data import SamplerState
from bll.errors import CheckpointError
from bll.training.history import EpochRecord
from bll.training.trainer import Trainer

Tensors = dict[str, torch.Tensor]
Record = dict[str, Any]


def capture(trainer: Trainer) -> tuple[Tensors, Record]:
    """Everything the rest of the run depends on.

    Returns:
        Tensors by name and values JSON can hold. The tensors are the trainer's own: write or copy
        them before it makes another step.
    """
    sampler = trainer.sampler.state()
    tensors: Tensors = {f"model/{key}": x for key, x in trainer.model.state_dict().items()}
    optimizer = trainer.optimizer.state_dict()
    plain_state: dict[str, dict[str, Any]] = {}
    for index, entries in optimizer["state"].items():
        for name, value in entries.items():
            if isinstance(value, torch.Tensor):
                # Step counters share memory, which the file format refuses.
                tensors[f"optimizer/{index}/{name}"] = value if value.dim() else value.clone()
            else:
                plain_state.setdefault(str(index), {})[name] = value
    tensors["random/cpu"] = torch.get_rng_state()
    if trainer.device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(trainer.device)
    tensors["sampler/generator"] = sampler.generator
    tensors["losses/sums"] = trainer.losses.sums
    tensors["timer/milliseconds"] = torch.tensor(trainer.timer.milliseconds(), dtype=torch.float64)
    record: Record = {
        "config": trainer.config.to_record(),
        "optimizer_state": plain_state,
        "optimizer_groups": [_plain(group) for group in optimizer["param_groups"]],
        "sampler_position": sampler.position,
        "losses": {"names": list(trainer.losses.names), "steps": trainer.losses.steps},
        "epoch_seconds": trainer.epoch_seconds,
        "history": [epoch.to_record() for epoch in trainer.history],
    }
    return tensors, record


def _plain(group: dict[str, Any]) -> dict[str, Any]:
    """A group of the optimiser as JSON has it: a learning rate in memory as its number."""
    return {
        name: value.item() if isinstance(value, torch.Tensor) else value
        for name, value in group.items()
    }


def restore(trainer: Trainer, tensors: Mapping[str, torch.Tensor], record: Record) -> None:
    """Bring a newly built ``trainer`` to the captured state.

    Raises:
        CheckpointError: The state belongs to another network or run.
    """
    try:
        _restore_model(trainer, _under("model/", tensors))
        _restore_optimizer(trainer, _under("optimizer/", tensors), record)
        trainer.sampler.restore(
            SamplerState(tensors["sampler/generator"], record["sampler_position"])
        )
        trainer.losses.restore(
            tuple(record["losses"]["names"]), record["losses"]["steps"], tensors["losses/sums"]
        )
        trainer.timer.restore(tensors["timer/milliseconds"].tolist())
        trainer.epoch_seconds = record["epoch_seconds"]
        trainer.history = [EpochRecord.from_record(epoch) for epoch in record["history"]]
        if trainer.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], trainer.device)
        torch.set_rng_state(tensors["random/cpu"])
    except KeyError as error:
        raise CheckpointError(f"checkpoint: expected an entry {error}, it is missing") from error
    except (IndexError, TypeError) as error:
        raise CheckpointError(f"checkpoint: not that of a training run: {error}") from error


def _under(prefix: str, tensors: Mapping[str, torch.Tensor]) -> Tensors:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _restore_model(trainer: Trainer, saved: Tensors) -> None:
    own = trainer.model.state_dict()
    if set(own) != set(saved):
        odd = ", ".join(sorted(set(own) ^ set(saved))[:4])
        raise CheckpointError(f"checkpoint: of another network: only one of the two has {odd}")
    for key, tensor in own.items():
        if tensor.shape != saved[key].shape or tensor.dtype != saved[key].dtype:
            raise CheckpointError(
                f"checkpoint: {key}: expected {tensor.dtype} {tuple(tensor.shape)}, "
                f"got {saved[key].dtype} {tuple(saved[key].shape)}"
            )
    trainer.model.load_state_dict(saved)


def _restore_optimizer(trainer: Trainer, saved: Tensors, record: Record) -> None:
    state: dict[int, dict[str, Any]] = {
        int(index): dict(values) for index, values in record["optimizer_state"].items()
    }
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    for name, tensor in saved.items():
        index, entry = name.split("/", 1)
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # A fused optimiser walks parameter and state in memory order: layouts must agree.
            tensor = torch.empty_like(parameter).copy_(tensor)
        state.setdefault(int(index), {})[entry] = tensor
    groups = []
    for group in record["optimizer_groups"]:
        # JSON has no tuples; torch keeps pairs such as Adam's betas as tuples.
        groups.append(
            {
                name: tuple(value) if isinstance(value, list) and name != "params" else value
                for name, value in group.items()
            }
        )
    trainer.optimizer.load_state_dict({"state": state, "param_groups": groups})
