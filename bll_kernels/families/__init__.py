"""Exponential families: their public description, and the reference formulas of each.

Adding one: docs/adding-a-family.md.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from bll_kernels.families.base import Family, Formulas, LogNorm, PairTerms
from bll_kernels.families.bernoulli import Bernoulli
from bll_kernels.families.categorical import Categorical
from bll_kernels.families.gaussian import Gaussian
from bll_kernels.families.gaussian_diagonal import GaussianDiagonal
from bll_kernels.families.gaussian_precision import GaussianPrecision

#: Every family by name, in the order of csrc/families/list.h.
FORMULAS: Final = MappingProxyType[str, Formulas](
    {
        "bernoulli": Bernoulli(),
        "gaussian": Gaussian(),
        "gaussian-precision": GaussianPrecision(),
        "gaussian-diagonal": GaussianDiagonal(),
        "categorical": Categorical(),
    }
)

#: Families whose messages are densities over z, so that `normalize_message` has no meaning.
NORMALISED_MESSAGES: Final = frozenset({"gaussian-precision", "gaussian-diagonal"})


#: The families as they are by name alone.
_PLAIN: Final = MappingProxyType({name: Family(name) for name in FORMULAS})


def get_family(family: str | Family, *, tau: float = 1.0, group: int | None = None) -> Family:
    """Resolve a family by name; a `Family` passes through after its name is checked.

    Args:
        family: registered name, or a `Family`.
        tau: message precision, for ``gaussian-precision`` given by name.
        group: latents per group, for ``categorical`` given by name.

    Raises:
        TypeError: `family` is neither a name nor a `Family`.
        ValueError: the name is not registered, or an option is out of range.
    """
    if isinstance(family, str):
        if tau == 1.0 and group is None and family in _PLAIN:
            return _PLAIN[family]
        family = Family(family, tau=tau, group=group)
    elif not isinstance(family, Family):
        raise TypeError(f"family: expected a name or a Family, got {type(family).__name__}")
    if family.name not in FORMULAS:
        raise ValueError(f"family: expected one of {', '.join(FORMULAS)}, got {family.name!r}")
    return family


__all__ = [
    "FORMULAS",
    "NORMALISED_MESSAGES",
    "Family",
    "Formulas",
    "LogNorm",
    "PairTerms",
    "get_family",
]
