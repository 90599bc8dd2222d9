"""What the kernels of a pair loss are given: operands, options, element function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bll_kernels.backends.triton.operands import Rows, per_row
from bll_kernels.families import (
    FORMULAS,
    bernoulli_triton,
    categorical_triton,
    gaussian_diagonal_triton,
    gaussian_precision_triton,
    gaussian_triton,
)

#: Families whose latents are independent of each other; the other one is categorical.
ELEMENT_FAMILIES: Final[dict[str, Any]] = {
    "bernoulli": bernoulli_triton,
    "gaussian": gaussian_triton,
    "gaussian-precision": gaussian_precision_triton,
    "gaussian-diagonal": gaussian_diagonal_triton,
}


@dataclass(frozen=True)
class NextInput:
    """The next block's input: where its means go, and the weight of the posterior's."""

    out: Tensor
    mix: float


def next_arguments(following: NextInput | None) -> dict[str, Any]:
    """Its kernel arguments; float8_e4m3fn goes as bytes, which every target can store."""
    if following is None:
        return {"next_ptr": None, "mix": 0.0}
    out = following.out
    pointer = out.view(torch.uint8) if out.dtype == torch.float8_e4m3fn else out
    return {"next_ptr": pointer, "mix": following.mix}


@dataclass(frozen=True)
class PairProblem:
    """The arguments that every kernel of a pair loss takes alike."""

    a: Rows
    b: Rows
    labels: Tensor | None
    grad: Tensor | None
    weight: Tensor | None
    family: str
    group: int
    tau: float
    loss: str
    tilt: float
    reduction: str

    @property
    def planes(self) -> int:
        """Parameters per latent."""
        return FORMULAS[self.family].planes

    @property
    def mean(self) -> float:
        """What the reduction multiplies a row's loss with."""
        return 1.0 / max(self.a.count, 1) if self.reduction == "batchmean" else 1.0

    def adds_programs(self, pieces: int) -> bool:
        """Whether programs leave one partial sum each, rather than values of pieces of rows.

        Args:
            pieces: that a row's latents are cut into. A weight multiplies the sum of them.
        """
        return self.reduction != "none" and (self.weight is None or pieces == 1)

    @property
    def groups(self) -> int:
        """Categorical groups per row; 0 for other families."""
        return self.a.width // self.group if self.family == "categorical" else 0

    def next_arguments(self, following: NextInput | None) -> dict[str, Any]:
        """Kernel arguments of the next block's input; its function stands beside the gradients'."""
        family = ELEMENT_FAMILIES.get(self.family)
        function = categorical_triton.group_next if family is None else family.next_mean
        return {**next_arguments(following), "NEXT": None if following is None else function}

    def shared(self) -> dict[str, Any]:
        """Kernel arguments: sizes, strides, factors and the family's numbers."""
        family = ELEMENT_FAMILIES.get(self.family, categorical_triton)
        options = family.options(self.tau, self.tilt, self.loss)
        weight, grad = per_row(self.weight), per_row(self.grad)
        return {
            "a_ptr": self.a.tensor,
            "weight_ptr": weight.tensor,
            "grad_ptr": grad.tensor,
            "rows": self.a.count,
            "width": self.a.width,
            "classes": self.b.count,
            "groups": self.groups,
            "group": self.group,
            "a_row": self.a.row,
            "a_plane": self.a.plane,
            "b_row": self.b.row,
            "b_plane": self.b.plane,
            "weight_stride": weight.stride,
            "grad_stride": grad.stride,
            "option0": options[0],
            "option1": options[1],
            "option2": options[2],
            "scale": self.mean,
            "TERMS": family.group_terms if self.groups else family.terms,
            "LOSS": self.loss,
            "PLANES": self.planes,
        }
