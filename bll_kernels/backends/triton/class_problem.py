"""What the kernels of a class loss are given: operands and options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from bll_kernels.backends.triton.launch import CLASS_TILE
from bll_kernels.backends.triton.operands import as_rows
from bll_kernels.backends.triton.problem import ELEMENT_FAMILIES, PairProblem
from bll_kernels.families import FORMULAS, categorical_triton

#: Families whose score is linear in a, but for terms that no class tells apart.
LINEAR_FAMILIES: Final = ("gaussian", "gaussian-precision")


@dataclass(frozen=True)
class ClassProblem:
    """The arguments that forward and backward share."""

    a: Tensor
    table: Tensor
    family: str
    group: int
    tau: float
    normalize: bool
    tilt: float

    @property
    def planes(self) -> int:
        """Parameters per latent."""
        return FORMULAS[self.family].planes

    @property
    def batch(self) -> torch.Size:
        """Shape of the rows."""
        return self.a.shape[: self.a.dim() - self.planes]

    def pair(self) -> PairProblem:
        """The evidence loss between every row and every class, as the kernels take it."""
        return PairProblem(
            as_rows(self.a, self.family), as_rows(self.table, self.family), None, None, None,
            self.family, self.group, self.tau, "evidence", self.tilt, "none",
        )  # fmt: skip

    def linear(self) -> tuple[float, float]:
        """Slope k and curvature q of a linear score s_c = k a . b_c + q |b_c|^2."""
        if self.family == "gaussian":
            return self.tilt, 0.0 if self.normalize else 0.5 * self.tilt * self.tilt
        precision = self.tau * self.tilt
        gain = precision / (1 + precision)
        return gain, -0.5 * gain

    @property
    def form(self) -> str | None:
        """What defines a linear score, by the name that kernels know; None for other scores."""
        if self.family == "gaussian":
            return "normalized" if self.normalize else "gaussian"
        return "precision" if self.family in LINEAR_FAMILIES else None

    def kernel_arguments(self) -> dict[str, Any]:
        """Arguments shared by the three tiled kernels."""
        pair = self.pair()
        family = ELEMENT_FAMILIES.get(self.family, categorical_triton)
        options = family.options(self.tau, self.tilt, "evidence")
        return {
            "a_ptr": pair.a.tensor,
            "table_ptr": pair.b.tensor,
            "rows": pair.a.count,
            "width": pair.a.width,
            "classes": pair.b.count,
            "a_row": pair.a.row,
            "a_plane": pair.a.plane,
            "b_row": pair.b.row,
            "b_plane": pair.b.plane,
            "option0": options[0],
            "option1": options[1],
            "option2": options[2],
            "TERMS": family.class_slopes if pair.groups else family.terms,
            "PLANES": self.planes,
            "ROWS": CLASS_TILE.rows,
            "CLASSES": CLASS_TILE.classes,
            "COLUMNS": CLASS_TILE.columns,
        }
