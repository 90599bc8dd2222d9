"""The words the ops understand, and the rules of shape and dtype every layer shares."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final, Literal, TypeAlias

import torch

Loss: TypeAlias = Literal["kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence"]
Reduction: TypeAlias = Literal["none", "sum", "batchmean"]
Pool: TypeAlias = Literal["mean", "max", "std"]
LabelGram: TypeAlias = Literal["centered", "equal"]
Direction: TypeAlias = Literal["rho_alpha", "alpha_rho"]

LOSSES: Final = ("kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence")
REDUCTIONS: Final = ("none", "sum", "batchmean")
POOLS: Final = ("mean", "max", "std")
LABEL_GRAMS: Final = ("centered", "equal")
DIRECTIONS: Final = ("rho_alpha", "alpha_rho")
FLOAT_DTYPES: Final = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
HALF_DTYPES: Final = (torch.bfloat16, torch.float16)
NEXT_DTYPES: Final = (*FLOAT_DTYPES, torch.float8_e4m3fn)
#: Named inputs of the next block, as the weight of the posterior's mean beside alpha's.
NEXT_INPUTS: Final = MappingProxyType({"alpha": 0.0, "rho": 1.0})
LABEL_DTYPES: Final = (torch.int64, torch.int32, torch.int16, torch.uint8)

#: Losses that hold the posterior rho constant: the message gets no gradient from them.
STOPPED_LOSSES: Final = frozenset({"kl", "reverse_kl"})


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """Dtype that sums, loss values and per-row factors are kept in: float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def pair_loss_name(direction: str, stop_posterior: bool) -> str:
    """Op-level name of the loss `posterior_kl` asks for."""
    name = "kl" if direction == "rho_alpha" else "reverse_kl"
    return name if stop_posterior else f"{name}_full"
