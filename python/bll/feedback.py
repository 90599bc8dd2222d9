"""Label -> message: what a block is told about the class, from the label alone."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter, is_lazy


class Message(nn.Module, ABC):
    """What one block is told about the class, made before the block's shapes are known."""

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether the tensors have their shapes."""

    @abstractmethod
    def materialize(
        self,
        width: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Give the tensors their shapes and values; parameters stay the same objects.

        Args:
            width: Number of latents D.
            device: Where to put them; None: where they are.
            dtype: Their data type; None: the one they have.
        """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the messages, for reports; only once `ready`."""


class ClassTable(Message):
    """One message per class: a table [C, D] of natural parameters, and a class bias [C].

    The direct feedback of the method (docs/method.md): a linear map from the one-hot label to the
    latents of one block, looked up rather than multiplied. Values are drawn from a generator of
    the table's own, so that they depend on `seed` alone and not on what else drew random numbers.

    Until `materialize` is called the parameters have no shape (as in torch's lazy modules): an
    optimiser may hold them, everything else raises. A fixed table has no columns until then.

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
        super().__init__()
        self.num_classes = num_classes
        self.learned = learned
        self.std = std
        self.seed = seed
        if learned:
            self.table = _shapeless(device)
        else:
            self.register_buffer("table", torch.empty(num_classes, 0, device=device))
        self.register_parameter("bias", _shapeless(device) if bias else None)

    @property
    def ready(self) -> bool:
        """Whether the tensors have their shapes."""
        return not is_lazy(self.table) and self.table.shape[1] > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, D)."""
        return tuple(self.table.shape)

    def materialize(
        self,
        width: int,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Give the tensors their shapes and draw them anew; see `Message.materialize`."""
        # A first forward under inference_mode must not make parameters that cannot be trained.
        with torch.inference_mode(False), torch.no_grad():
            if isinstance(self.table, UninitializedParameter):
                self.table.materialize((self.num_classes, width), device=device, dtype=dtype)
            else:
                self.table = self.table.new_empty(
                    self.num_classes, width, device=device, dtype=dtype
                )
            if isinstance(self.bias, UninitializedParameter):
                self.bias.materialize((self.num_classes,), device=device, dtype=dtype)
            self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the table anew from its seed and set the bias to zero; on meta do nothing."""
        if self.table.is_meta:
            return
        width = self.table.shape[1]
        std = 1 / math.sqrt(width) if self.std is None else self.std
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            self.table.copy_(torch.randn(self.table.shape, generator=generator) * std)
            if self.bias is not None:
                self.bias.zero_()

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        stored = state_dict.get(prefix + "table")
        if not self.ready and isinstance(stored, Tensor) and stored.dim() == 2:
            self.materialize(stored.shape[1], dtype=stored.dtype)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """One line for `print(model)`."""
        width = self.table.shape[1] if self.ready else "?"
        kind = "learned" if self.learned else "fixed"
        return f"classes={self.num_classes}, width={width}, {kind}"


def _shapeless(device: torch.device | str | None) -> nn.Parameter:
    make: Any = UninitializedParameter  # torch's stubs lack its signature
    return cast(nn.Parameter, make(device=device))
