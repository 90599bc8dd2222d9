"""A training run over ranks: every rank trains its blocks, all of them know the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bll.distributed import Stage, stage, start
from bll.distributed.exchange import broadcast_tensors, gather_values
from bll.training.optimizers import BlockOptimizer
from bll.training.updates import GroupUpdates

if TYPE_CHECKING:
    from bll.training.config import TrainConfig
    from bll.training.meters import LossMeter


def join(device: str) -> int:
    """Join the ranks that torchrun started; return this one's number.

    Raises:
        ValueError: The process was not started by torchrun.
    """
    try:
        return start(device)
    except RuntimeError as error:
        raise ValueError(str(error)) from error


class Ranks:
    """This rank's blocks of a run, and the exchange at the end of an epoch.

    Args:
        model: The wrapped model.
        optimizer: Over `bll.param_groups` of the whole model.
        config: The options; the same on every rank.
        example: Training images [n, ...].
        threads: Intra-op threads.

    Raises:
        ValueError: More ranks than blocks, or ranks that differ.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: BlockOptimizer,
        config: TrainConfig,
        example: Tensor,
        threads: int,
    ) -> None:
        record = config.to_record()
        del record["data_dirs"]
        self.optimizer = optimizer
        self.stage: Stage = stage(
            model,
            lambda parameters: GroupUpdates(optimizer, parameters),
            example=example,
            micro_batches=config.micro_batches,
            threads=threads,
            seed=config.seed,
            recipe=record,
        )
        self.count = self.stage.layout.stages
        self._losses: list[dict[str, Tensor]] = []

    def step(self, images: Tensor, labels: Tensor, number: int) -> None:
        """Train this rank's blocks on a batch.

        Args:
            images: [batch, ...].
            labels: [batch].
            number: Of the step in the run, from 0: a resumed run draws the same random numbers.
        """
        self.stage.batches_done = number
        self._losses.append(self.stage.step(images, labels).losses)

    def agreed(self, question: Callable[[], bool]) -> Callable[[], bool]:
        """Return the question with the first rank's answer on every rank."""
        return lambda: self.stage.agree(question())

    def collect(self, meter: LossMeter) -> None:
        """Bring weights, optimiser states and the losses since the last call to every rank."""
        self.stage.gather()
        with self.stage.watched():
            self._collect_states()
            self._collect_losses(meter)

    def _collect_states(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        own = {id(p) for block in self.stage.own for p in block.parameters()}
        state = self.optimizer.state
        mine = {
            f"{index}/{name}": value
            for index, parameter in enumerate(parameters)
            if id(parameter) in own
            for name, value in state[parameter].items()
        }
        pipeline, device = self.stage.groups.pipeline, self.stage.device
        for member in range(self.count):
            found = broadcast_tensors(mine, member, pipeline, device)
            if member == self.stage.layout.stage:
                continue
            for key, value in found.items():
                index, name = key.split("/", 1)
                like = parameters[int(index)]
                laid_out = torch.empty_like(like) if value.shape == like.shape else value.clone()
                state[like][name] = laid_out.copy_(value)

    def _collect_losses(self, meter: LossMeter) -> None:
        own: list[dict[str, str]] = [
            # As hexadecimal text a float keeps every bit.
            {name: float(loss).hex() for name, loss in losses.items()}
            for losses in self._losses
        ]
        self._losses = []
        everyone = gather_values(own, self.stage.groups.pipeline, self.stage.device)
        for parts in zip(*everyone, strict=True):
            merged: dict[str, Any] = {}
            for part in parts:
                merged.update(part)
            _add(meter, merged, self.stage.sample.dtype, self.stage.device)


def _add(
    meter: LossMeter, losses: Mapping[str, str], dtype: torch.dtype, device: torch.device
) -> None:
    # Losses of half types and float32 are float32.
    dtype = dtype if dtype == torch.float64 else torch.float32
    values = {
        name: torch.tensor(float.fromhex(text), dtype=dtype, device=device)
        for name, text in losses.items()
    }
    meter.add(torch.stack(list(values.values())).sum(), values)
