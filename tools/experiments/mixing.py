"""Posterior mixing: some samples enter the next block as their posterior has it, not as they are.

The released code of Kappel et al. has flags for it that nothing reads, so this is one reading of
them: a block hands on the mean of rho ~ alpha * beta in place of the mean of alpha. The label then
stands in what the next blocks are trained on, which no evaluation does.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bll.data import ImageData
from bll.features import latents
from bll.feedback import ClassTable
from bll.training.config import TrainConfig
from bll.training.trainer import Trainer
from bll_kernels.functional.standardize import EPSILON


class MixingTrainer(Trainer):
    """Trains by rule `bll`, with samples drawn at random that go on as their posterior's mean.

    Args:
        config: The options, of the rule `bll` with its default family and standardisation, on a
            network whose blocks hand on maps.
        data: The image set.
        mixing: Share of samples in the first step, in [0, 1]; it falls linearly to nothing at half
            of the training.

    Raises:
        ValueError: An option does not fit.
    """

    def __init__(self, config: TrainConfig, data: ImageData, mixing: float) -> None:
        super().__init__(config, data)
        handle = self.model.bll
        rule = handle.rule.describe()
        wanted = {"rule": "bll", "family": "gaussian-precision", "standardize": "channels"}
        if {name: rule.get(name) for name in wanted} != wanted or rule["pool"][0] != "mean":
            raise ValueError(f"rule: expected {wanted} on means of cells, got {rule}")
        self.mixing = mixing
        self.tau = float(rule["tau"])
        self.labels = torch.empty(0)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)
        self.model.register_forward_pre_hook(self._see_labels, with_kwargs=True, prepend=True)
        self.end_block = handle.end_block
        handle.end_block = self._end_block

    def _see_labels(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        self.labels = kwargs.get("y", self.labels)

    def _end_block(self, index: int, output: Any) -> Any:
        """What the wrapped model's own does, and then the mixing; evaluation is left alone."""
        handed_on = self.end_block(index, output)
        return None if handed_on is None else self._mixed(index, handed_on)

    @torch.no_grad()
    def _mixed(self, index: int, output: Tensor) -> Tensor:
        half = self.config.epochs * self.steps_per_epoch / 2
        share = self.mixing * max(0.0, 1 - self.steps_done / half)
        drawn = torch.rand(len(output), generator=self.generator, device=self.device) < share
        return torch.where(drawn[:, None, None, None], self._posterior_mean(index, output), output)

    def _posterior_mean(self, index: int, output: Tensor) -> Tensor:
        """The map moved so that its standardised cells are (a + tau b) / (1 + tau)."""
        handle = self.model.bll
        spec = handle.blocks[index].feature
        table = cast(ClassTable, handle.messages[index])
        feature = latents(output, spec)
        cells = F.adaptive_avg_pool2d(feature, spec.pool[1])
        variance, mean = torch.var_mean(cells, (0, 2, 3), correction=0, keepdim=True)
        scale = (variance + EPSILON).sqrt()
        message = table.rows()[self.labels].view_as(cells)
        moved = (message * scale + mean - cells) * self.tau / (1 + self.tau)
        return output + F.interpolate(moved, feature.shape[2:], mode="nearest")
