"""An auxiliary network behind a moving average of the next block: `dgl`, `aux="momentum"`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bll.features import FeatureSpec
from bll.feedback import Later
from bll.rules.ahead import Ahead, linear_map, samples_of
from bll.rules.dgl import Auxiliary, AuxiliaryMaker
from bll_kernels.pipeline.seeds import seeded


class MomentumAuxiliary(Auxiliary):
    """Auxiliary network behind a moving average of the next block's first module.

        rows = aux(E(h) + V h),   E <- decay E + (1 - decay) (next block's first module)

    E starts as that module and moves before each loss; no loss trains it, but gradients go through
    it, in a backward pass that comes before the next loss. V, a linear map of a vector or of a
    map's channels (pooled to the size of E(h)), and aux are trained. Batch statistics of E are its
    own.

    Args:
        num_classes: Number of classes.
        make: Makes the network behind the sum, without its last linear layer.
        decay: Share of the average that stays.
        seed: As in `Auxiliary`.
    """

    def __init__(self, num_classes: int, make: AuxiliaryMaker, decay: float, seed: int) -> None:
        super().__init__(num_classes, make, seed)
        self.decay = decay
        # In a tuple, so that the next block's module is not registered under this one as well.
        self._watched: tuple[nn.Module, ...] = ()

    def watch(self, later: Sequence[Later]) -> None:
        """Take the next block's first module."""
        self._watched = later[0].modules[:1]

    def forward(self, feature: Tensor) -> Tensor:
        """Map a feature to the rows [B, D'] that the last linear layer reads."""
        rows: Tensor = self.network(self.average(feature) + self.shortcut(feature))
        return rows

    def advance(self) -> None:
        """Move the average one step towards the next block's module."""
        (module,) = self._watched
        live = dict(module.named_parameters())
        with torch.no_grad():
            for name, held in self.average.module.named_buffers():
                if name in live:
                    held.lerp_(live[name].to(held.device), 1 - self.decay)

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Make average, shortcut and network; see `Message.materialize`.

        Raises:
            ValueError: The next block's first module is not known, or does not take the feature.
        """
        if not self._watched:
            raise ValueError("aux: 'momentum' needs a next block with a module")
        average = Ahead(self._watched[0], feature, device, "momentum")
        _make_constant(average)
        with torch.inference_mode(False), seeded(self.seed + 1):
            shortcut = linear_map(feature.sample_shape, average.shape, "momentum")
        self.average = average
        self.shortcut = shortcut.to(device=device, dtype=feature.dtype)
        super().materialize(samples_of(feature, average.shape), device=device)


def _make_constant(module: nn.Module) -> None:
    """Turn parameters into buffers, which no loss and no optimiser takes."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
