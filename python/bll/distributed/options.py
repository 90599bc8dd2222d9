"""What goes into a stage and what a step gives: options, checked once, and results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from bll.distributed.groups import DEFAULT_TIMEOUT
from bll_kernels.pipeline.traced import LOCAL_STEPS


@dataclass(frozen=True)
class StageOptions:
    """What `bll.distributed.stage` describes under the same names."""

    micro_batches: int = 1
    slots: int = 2
    threads: int = 1
    seed: int = 0
    blocks_per_rank: Sequence[int] | None = None
    timeout: float = DEFAULT_TIMEOUT
    local_step: str = "auto"

    def __post_init__(self) -> None:
        """Refuse options out of their range with a `ValueError` that names the option."""
        for name in ("micro_batches", "slots", "threads"):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}: expected an int of at least 1, got {count!r}")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise ValueError(f"seed: expected an int of at least 0, got {self.seed!r}")
        if self.local_step not in LOCAL_STEPS:
            raise ValueError(
                f"local_step: expected one of {', '.join(LOCAL_STEPS)}, got {self.local_step!r}"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout: expected a positive number, got {self.timeout!r}")


@dataclass(frozen=True)
class StageResult:
    """What a batch gave on this rank.

    Attributes:
        losses: Local loss of each of this rank's blocks, by name, a mean over the batch: 0-dim.
        output: Output of the last block, [batch, ...], on the last rank; None elsewhere.
    """

    losses: dict[str, Tensor]
    output: Tensor | None
