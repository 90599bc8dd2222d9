"""An auxiliary network behind a moving average of the next block: `dgl`, `aux="momentum"`."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from bll.features import FeatureSpec, select_feature
from bll.rules.dgl import Auxiliary, AuxiliaryMaker


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

    def watch(self, modules: Sequence[nn.Module]) -> None:
        """Take the next block's first module."""
        self._watched = tuple(modules[:1])

    def forward(self, feature: Tensor) -> Tensor:
        """Map a feature to the rows [B, D'] that the last linear layer reads."""
        ahead = select_feature(self.average(feature))
        rows: Tensor = self.network(ahead + self.shortcut(feature))
        return rows

    def advance(self) -> None:
        """Move the average one step towards the next block's module."""
        (module,) = self._watched
        live = dict(module.named_parameters())
        with torch.no_grad():
            for name, held in self.average.named_buffers():
                if name in live:
                    held.lerp_(live[name].to(held.device), 1 - self.decay)

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Make average, shortcut and network; see `Message.materialize`.

        Raises:
            ValueError: The next block's first module is not known, or does not take the feature.
        """
        if not self._watched:
            raise ValueError("aux: 'momentum' needs a next block with a module")
        average = _without_parameters(self._watched[0]).to(device=device, dtype=feature.dtype)
        ahead = _shape_behind(average, feature, device)
        with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed + 1)
            shortcut = _linear_map(feature.sample_shape, ahead)
        self.average = average
        self.shortcut = shortcut.to(device=device, dtype=feature.dtype)
        super().materialize(_spec(feature, ahead), device=device)


def _without_parameters(module: nn.Module) -> nn.Module:
    """A copy without hooks, whose weights are buffers."""
    with torch.inference_mode(False):
        copied = copy.deepcopy(module)
    for part in copied.modules():
        for hooks in (part._forward_hooks, part._forward_pre_hooks, part._backward_hooks):
            hooks.clear()
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                del part._parameters[name]
                part.register_buffer(name, parameter.detach())
    return copied


def _shape_behind(
    module: nn.Module, feature: FeatureSpec, device: torch.device | None
) -> tuple[int, ...]:
    """Shape of one sample behind the module.

    Raises:
        ValueError: The module does not take the feature alone, or gives no rows or maps.
    """
    probe = torch.zeros(2, *feature.sample_shape, dtype=feature.dtype, device=device)
    name = type(module).__name__
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            shape = tuple(select_feature(module(probe)).shape)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"aux: 'momentum' needs a next block whose first module takes the feature "
            f"{list(probe.shape)} alone; {name} does not: {reason}"
        ) from error
    finally:
        module.train(was_training)
    if len(shape) not in (2, 4) or shape[0] != 2:
        raise ValueError(
            f"aux: 'momentum' needs rows [2, D] or maps [2, C, H, W] behind the next block's "
            f"first module; {name} gives {list(shape)}"
        )
    return shape[1:]


def _linear_map(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> nn.Module:
    if len(inputs) == 3 and len(outputs) == 3:
        mixed = nn.Conv2d(inputs[0], outputs[0], 1, bias=False)
        return nn.Sequential(nn.AdaptiveAvgPool2d(outputs[1:]), mixed)
    if len(inputs) == 3:
        pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        return nn.Sequential(pooled, nn.Linear(inputs[0], outputs[0], bias=False))
    if len(outputs) == 3:
        raise ValueError("aux: 'momentum' cannot add a vector to the maps of the next block")
    return nn.Linear(inputs[0], outputs[0], bias=False)


def _spec(feature: FeatureSpec, shape: tuple[int, ...]) -> FeatureSpec:
    width = math.prod(shape)
    return replace(feature, shape=shape, pool=None, width=width, channels_last=False)
