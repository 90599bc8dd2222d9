"""Label -> message: what a block is told about the class, from the label alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from bll.features import FeatureSpec


class Later(NamedTuple):
    """A block behind one's own.

    Attributes:
        modules: The largest modules that run in it alone, in their order in the model.
        feature: What it gets: how the block before it is read.
    """

    modules: tuple[nn.Module, ...]
    feature: FeatureSpec


class Message(nn.Module, ABC):
    """What one block is told about the class, and what it learns for it, made without shapes."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the tensors have their shapes."""

    @abstractmethod
    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Give the tensors their shapes and values; parameters stay the same objects.

        Args:
            feature: How the block's feature is read: shape, pooling, width and dtype.
            device: Where to put them; None: where they are.
        """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the messages, for reports; only once `ready`."""

    def follow(self, following: Message) -> None:
        """Be told of the next block's message, before shapes are known. Most have no use for it."""

    def watch(self, later: Sequence[Later]) -> None:
        """Be told of the blocks behind, before shapes are given. Most have no use for it.

        Args:
            later: The next block, and those behind it in order.
        """


class ShapedMessage(Message):
    """A message of named tensors whose shapes follow from the feature's.

    Until `materialize` is called they have no shape (as in torch's lazy modules): an optimiser may
    hold the learned ones, everything else raises. Values are drawn from a generator of the
    module's own, so that they depend on `seed` alone and not on what else drew random numbers.

    Args:
        learned: Names of the tensors that are parameters, in the order they are drawn.
        fixed: Names of those that stay as drawn: buffers, drawn after the learned ones.
        seed: Seed of the draw.
        device: Device of the tensors.
    """

    def __init__(
        self,
        learned: tuple[str, ...],
        fixed: tuple[str, ...] = (),
        *,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self._names = (*learned, *fixed)
        self._has_shapes = False
        for name in learned:
            self.register_parameter(name, _shapeless(device))
        for name in fixed:
            self.register_buffer(name, torch.empty(0, device=device))

    @abstractmethod
    def shapes(self, feature: FeatureSpec) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor for a feature of this kind."""

    @abstractmethod
    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return fresh values of one tensor, on the CPU."""

    @property
    def ready(self) -> bool:
        """Whether the tensors have their shapes."""
        return self._has_shapes

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first tensor; () if there is none."""
        return tuple(getattr(self, self._names[0]).shape) if self._names else ()

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Give the tensors their shapes and draw them anew; see `Message.materialize`."""
        self._give_shapes(self.shapes(feature), device, feature.dtype)

    def reset_parameters(self) -> None:
        """Draw every tensor anew from the seed; on meta do nothing."""
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            for name in self._names:
                tensor = getattr(self, name)
                if not tensor.is_meta:
                    tensor.copy_(self.draw(name, tuple(tensor.shape), generator))

    def _give_shapes(
        self,
        shapes: dict[str, tuple[int, ...]],
        device: torch.device | None,
        dtype: torch.dtype | None,
    ) -> None:
        # A first forward under inference_mode must not make parameters that cannot be trained.
        with torch.inference_mode(False), torch.no_grad():
            for name, shape in shapes.items():
                tensor = getattr(self, name)
                if isinstance(tensor, UninitializedParameter):
                    tensor.materialize(shape, device=device, dtype=dtype)
                else:
                    setattr(self, name, tensor.new_empty(shape, device=device, dtype=dtype))
            self._has_shapes = True
            self.reset_parameters()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = {name: state_dict.get(prefix + name) for name in self._names}
        complete = stored and all(isinstance(tensor, Tensor) for tensor in stored.values())
        if complete and not self.ready:
            tensors = cast(dict[str, Tensor], stored)
            first = next(iter(tensors.values()))
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
            self._give_shapes(shapes, None, first.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        shapes = [
            f"{name}={list(getattr(self, name).shape) if self.ready else '?'}"
            for name in self._names
        ]
        return ", ".join(shapes)


class ClassTable(ShapedMessage):
    """One message per class: a table [C, D] of natural parameters, and a class bias [C].

    The direct feedback of the method (docs/method.md): a linear map from the one-hot label to the
    latents of one block, looked up rather than multiplied. Read the other way, from latents to
    classes, it is the weight of a local linear read-out. See `ShapedMessage` for its life before
    shapes are known.

    Args:
        num_classes: Number of classes C.
        learned: True: the table is a parameter. False: a buffer that stays as drawn.
        std: Standard deviation of the draw; None is 1 / sqrt(D).
        bias: Whether there is a class bias (learned, starting at zero).
        seed: Seed of the draw.
        device: Device of the tensors.
    """

    table: Tensor
    bias: Tensor | None

    def __init__(
        self,
        num_classes: int,
        *,
        learned: bool,
        std: float | None,
        bias: bool,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        parameters = ("table",) * learned + ("bias",) * bias
        super().__init__(parameters, () if learned else ("table",), seed=seed, device=device)
        self.num_classes = num_classes
        self.learned = learned
        self.std = std
        if not bias:
            self.register_parameter("bias", None)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D)."""
        return tuple(self.table.shape)

    def rows(self) -> Tensor:
        """Return the message of every class, [C, D]."""
        return self.table

    def shapes(self, feature: FeatureSpec) -> dict[str, tuple[int, ...]]:
        """Return [C, D] for the table and [C] for the bias."""
        shapes: dict[str, tuple[int, ...]] = {"table": (self.num_classes, feature.width)}
        if self.bias is not None:
            shapes["bias"] = (self.num_classes,)
        return shapes

    def draw(self, name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Return a normal draw for the table, zeros for the bias."""
        if name == "bias":
            return torch.zeros(shape)
        std = 1 / math.sqrt(shape[1]) if self.std is None else self.std
        return torch.randn(shape, generator=generator) * std

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        width = self.table.shape[1] if self.ready else "?"
        kind = "learned" if self.learned else "fixed"
        return f"classes={self.num_classes}, width={width}, {kind}"


class MessageParts(Message):
    """Several messages of one block under one name, such as a read-out and a projection.

    Args:
        **parts: The messages by name; they become submodules of these names.
    """

    def __init__(self, **parts: Message) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def parts(self) -> dict[str, Message]:
        """Return the messages by name."""
        return {name: cast(Message, part) for name, part in self.named_children()}

    @property
    def ready(self) -> bool:
        """Whether the tensors of all parts have their shapes."""
        return all(part.ready for part in self.parts().values())

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first part."""
        return next(iter(self.parts().values())).shape

    def feature_of(self, name: str, feature: FeatureSpec) -> FeatureSpec:
        """Return how the named part reads the feature; here as the rule says."""
        return feature

    def materialize(self, feature: FeatureSpec, *, device: torch.device | None = None) -> None:
        """Give the tensors of every part their shapes; see `Message.materialize`."""
        for name, part in self.parts().items():
            if not part.ready:
                part.materialize(self.feature_of(name, feature), device=device)


def _shapeless(device: torch.device | str | None) -> nn.Parameter:
    make: Any = UninitializedParameter  # torch's stubs lack its signature
    return cast(nn.Parameter, make(device=device))
