"""What the ranks of the tests run; importable by their processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import bll
import bll.distributed
from bll_kernels.optim import BlockAdam

CLASSES = 5
FEATURES = 12


def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    return BlockAdam(parameters, lr=3e-3)


def network(
    blocks: int = 4, *, norm: bool = True, dropout: float = 0.2, rule: str = "bll", width: int = 16
) -> nn.Module:
    """A wrapped perceptron with batch norm and dropout, the same in every process."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    inputs = FEATURES
    for _ in range(blocks - 1):
        parts: list[nn.Module] = [nn.Linear(inputs, width)]
        parts += [nn.BatchNorm1d(width)] if norm else []
        parts += [nn.ReLU()] + ([nn.Dropout(dropout)] if dropout else [])
        layers.append(nn.Sequential(*parts))
        inputs = width
    model = nn.Sequential(*layers, nn.Linear(inputs, CLASSES))
    names = [str(index) for index in range(blocks - 1)]
    example = torch.zeros(4, FEATURES)
    return bll.wrap(model, blocks=names, rule=rule, num_classes=CLASSES, example=example, seed=1)


def batches(count: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """The same batches in every process."""
    generator = torch.Generator().manual_seed(11)
    found = []
    for _ in range(count):
        x = torch.randn(size, FEATURES, generator=generator)
        labels = torch.randint(0, CLASSES, (size,), generator=generator)
        found.append((x + 0.5 * labels[:, None], labels))
    return found


def plain(tree: Any) -> Any:
    """Tensors as (dtype, shape, bytes), which need no shared memory on their way to the test."""
    if isinstance(tree, Tensor):
        x = tree.detach().contiguous()
        return (str(x.dtype), tuple(x.shape), x.numpy().tobytes())
    if isinstance(tree, dict):
        return {key: plain(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [plain(value) for value in tree]
    return tree


def outcome(model: nn.Module, optimizers: Sequence[Any], extra: Any = None) -> dict[str, Any]:
    """Everything that must not differ by a bit."""
    return plain(
        {
            "model": model.state_dict(),
            "optimizers": [list(o.state_dict()["state"].values()) for o in optimizers],
            "extra": extra,
        }
    )


def train(
    rank: int,
    world: int,
    *,
    steps: int = 30,
    size: int = 32,
    micro_batches: int = 8,
    net: dict[str, Any] | None = None,
    seed: int = 5,
    options: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train, gather, and return everything; inputs reach the first rank only."""
    model = network(**(net or {}))
    random_state = torch.get_rng_state()
    stage = bll.distributed.stage(
        model,
        adam,
        example=torch.zeros(2, FEATURES),
        micro_batches=micro_batches,
        seed=seed,
        timeout=60.0,
        **(options or {}),
    )
    losses, outputs = [], []
    for x, labels in batches(steps, size):
        result = stage.step(x if rank == 0 else None, labels)
        losses.append(result.losses)
        outputs.append(result.output)
    stage.gather()
    untouched = torch.equal(random_state, torch.get_rng_state())
    found = outcome(model, stage.optimizers, {"losses": losses, "outputs": outputs})
    return {**found, "names": stage.names, "untouched": untouched}


def maps() -> tuple[nn.Module, Tensor, Tensor]:
    """A small convolutional network in channels-last layout, and a batch."""
    torch.manual_seed(4)
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(first, second, nn.Linear(8, CLASSES))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(8, 3, 6, 6).to(memory_format=torch.channels_last)
    labels = torch.arange(8) % CLASSES
    return bll.wrap(model, ["0", "1"], num_classes=CLASSES, example=x), x, labels


def train_maps(rank: int, world: int) -> dict[str, Any]:
    model, x, labels = maps()
    stage = bll.distributed.stage(
        model, adam, example=x, micro_batches=2, blocks_per_rank=[1, 2], timeout=60.0
    )
    for _ in range(3):
        stage.step(x, labels)
    stage.gather()
    return plain(model.state_dict())
