"""The reference networks by name."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from bll.balance import balanced_ends
from bll.models.cost import multiply_adds
from bll.models.mlp import mlp
from bll.models.network import Network
from bll.models.resnet import RESNETS, ResNet
from bll.models.vgg import Vgg8b

MODEL_NAMES: tuple[str, ...] = ("mlp", *RESNETS, "vgg8b")


Shape = tuple[int, int, int]


def _vgg_cuts(model: Vgg8b, image_shape: Shape, blocks: int) -> tuple[str, ...]:
    """Cuts between layers, balanced by multiply-adds; one per layer for eight blocks."""
    counts = multiply_adds(model, image_shape)
    layers = [name for name, _ in model.named_children()]
    if not 1 <= blocks <= len(layers):
        raise ValueError(f"blocks: expected 1 to {len(layers)} (the layers), got {blocks}")
    costs = [
        sum(count for name, count in counts.items() if name.split(".")[0] == layer)
        for layer in layers
    ]
    return tuple(layers[end] for end in balanced_ends(costs, blocks))


def _resnet_cuts(model: ResNet, image_shape: Shape, blocks: int) -> tuple[str, ...]:
    """Cuts after the stages for four blocks, else between units, balanced by multiply-adds."""
    stages = [name for name, _ in model.named_children() if name.startswith("stage")]
    if blocks == len(stages):
        return tuple(stages[:-1])
    counts = multiply_adds(model, image_shape)
    units = [
        f"{stage}.{name}"
        for stage in stages
        for name, _ in model.get_submodule(stage).named_children()
    ]
    costs = [
        sum(count for name, count in counts.items() if name.startswith(f"{unit}."))
        for unit in units
    ]
    costs[0] += sum(count for name, count in counts.items() if name.startswith("stem."))
    costs[-1] += counts["head"]
    if not 1 <= blocks <= len(units):
        raise ValueError(
            f"blocks: expected 1 to {len(units)} (the residual units of the model), got {blocks}"
        )
    return tuple(units[end] for end in balanced_ends(costs, blocks))


def _named_cuts(model: nn.Module, names: Sequence[str]) -> tuple[str, ...]:
    """The modules named as ends of blocks, which must exist; `bll.wrap` checks their order."""
    known = dict(model.named_modules())
    for name in names:
        if name not in known or not name:
            some = ", ".join(child for child, _ in model.named_children())
            raise ValueError(f"blocks: expected names of modules (such as {some}), got {name!r}")
    return tuple(names)


def _check_width(width: int | None) -> None:
    if width is not None and width < 1:
        raise ValueError(f"width: expected at least 1, got {width}")


def build_network(
    name: str,
    image_shape: Shape,
    num_classes: int,
    *,
    blocks: int | Sequence[str] = 4,
    width: int | None = None,
) -> Network:
    """Reference network ``name``, initialised from torch's global random state.

    Args:
        name: One of ``MODEL_NAMES``.
        image_shape: Channels, height and width of an image.
        num_classes: Number of logits.
        blocks: Number of blocks. It sets the depth of ``mlp``; a residual network keeps its depth
            and is cut after its stages (4 blocks) or between residual units; ``vgg8b`` is cut
            between its layers. Or the names of the modules that end blocks, all but the last one,
            in their order; ``mlp``, whose depth is a number of blocks, takes no names.
        width: Hidden units of ``mlp`` (default 256), or channels of a residual network's first
            stage (default 16 for ``resnet10``, 64 for the others) or of the first convolution of
            ``vgg8b`` (default 128).

    Raises:
        ValueError: An argument is out of its range.
    """
    if name == "mlp":
        if not isinstance(blocks, int):
            raise ValueError(f"blocks: mlp expects a number of blocks, got {list(blocks)}")
        return mlp(image_shape, num_classes, blocks=blocks, width=256 if width is None else width)
    if name == "vgg8b":
        _check_width(width)
        vgg = Vgg8b(image_shape, num_classes, 128 if width is None else width)
        if isinstance(blocks, int):
            return Network(vgg, _vgg_cuts(vgg, image_shape, blocks))
        return Network(vgg, _named_cuts(vgg, blocks))
    if name not in RESNETS:
        raise ValueError(f"model: expected one of {', '.join(MODEL_NAMES)}, got {name!r}")
    shape = RESNETS[name]
    _check_width(width)
    channels = shape.width if width is None else width
    model = ResNet(shape, image_shape[0], num_classes, channels)
    if isinstance(blocks, int):
        return Network(model, _resnet_cuts(model, image_shape, blocks))
    return Network(model, _named_cuts(model, blocks))
