"""What a family is: its public description and the formulas the reference backend asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True)
class Family:
    """An exponential family with its options; hashable, so it can key tables and graphs.

    Attributes:
        name: registered name, for example ``"bernoulli"``.
        tau: precision of the message, used by ``gaussian-precision`` only.
        group: latents per categorical group; ``None`` means one group over the last dimension.
    """

    name: str
    tau: float = 1.0
    group: int | None = None

    def __post_init__(self) -> None:
        """Check the options.

        Raises:
            TypeError: `tau` is not a number or `group` not an integer.
            ValueError: `tau` is not positive and finite, or `group` is below 1.
        """
        if isinstance(self.tau, bool) or not isinstance(self.tau, (int, float)):
            raise TypeError(f"tau: expected a number, got {type(self.tau).__name__}")
        if not 0 < self.tau < math.inf:
            raise ValueError(f"tau: expected a positive finite number, got {self.tau}")
        if self.group is None:
            return
        if isinstance(self.group, bool) or not isinstance(self.group, int):
            raise TypeError(f"group: expected an integer or None, got {type(self.group).__name__}")
        if self.group < 1:
            raise ValueError(f"group: expected at least 1, got {self.group}")


class PairTerms(NamedTuple):
    """A loss between alpha and beta, summed over latents, with its gradients per latent."""

    value: Tensor  # (*batch,)
    grad_a: Tensor  # shape of a
    grad_b: Tensor  # shape of a


class LogNorm(NamedTuple):
    """A(b) of a message, summed over latents, and its derivative mu(b)."""

    value: Tensor  # (*batch,)
    grad: Tensor  # shape of b


class Formulas(Protocol):
    """The reference formulas of a family, in the dtype of their inputs.

    `planes` is the number of parameters per latent; with more than one they stand on the
    second-last dimension.
    """

    planes: int

    def pair(self, a: Tensor, b: Tensor, loss: str, *, group: int, tau: float) -> PairTerms:
        """Value and gradients of `loss`; `a` and `b` broadcast against each other."""
        ...

    def means(self, a: Tensor, b: Tensor, *, group: int, tau: float) -> tuple[Tensor, Tensor]:
        """Means of alpha and of the posterior rho, one number per latent."""
        ...

    def message_log_norm(self, b: Tensor, *, group: int) -> LogNorm | None:
        """A(b) and mu(b), or None where messages are densities over z already."""
        ...

    def tilt_message(self, b: Tensor, tau: float, tilt: float) -> tuple[Tensor, float, float]:
        """Parameters of beta ** tilt: (b', tau', d b'/d b)."""
        ...


class NaturalMessage:
    """Tilting for families whose message is a natural parameter: b scales."""

    def tilt_message(self, b: Tensor, tau: float, tilt: float) -> tuple[Tensor, float, float]:
        """Scale the natural parameters."""
        return b * tilt, tau, tilt
