"""What this machine can do at most, measured: a copy of the same size, a square matrix product.

A processor's copy also reads what it is about to overwrite, so a loss that reads more than it
writes may pass it. What nothing passes is the fastest stream: a copy, or an array scaled in place.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bll.bench.timers import Timer, interleave

#: A rate above the measured limit by more than this is a mistake in the measurement.
SLACK = 1.05
_ROUNDS, _MATMUL_ROUNDS = 9, 5
_MATMUL_SIZE = {"cpu": 1024, "cuda": 8192}


class Limits:
    """Measured limits of one device; each is measured once.

    Args:
        timer: Of the device.
        device: "cpu" or "cuda".
    """

    def __init__(self, timer: Timer, device: str) -> None:
        self.timer, self.device = timer, device
        self._copy: dict[int, float] = {}
        self._scale: dict[int, float] = {}
        self._matmul: dict[torch.dtype, float] = {}

    def copy_rate(self, moved: int) -> float:
        """Bytes per second, read and written, of a plain copy that moves as many bytes."""
        if moved not in self._copy:
            count = max(moved // 8, 1)
            pairs = [
                (torch.randn(count, device=self.device), torch.empty(count, device=self.device))
                for _ in range(self.timer.sets(8 * count))
            ]
            calls: list[Callable[[], object]] = [
                lambda pair=pair: pair[1].copy_(pair[0])  # type: ignore[misc]
                for pair in pairs
            ]
            times = interleave({"copy": self.timer.prepare(calls)}, _ROUNDS)["copy"]
            self._copy[moved] = 8 * count / statistics.median(times)
        return self._copy[moved]

    def stream_rate(self, moved: int) -> float:
        """Bytes per second of the fastest stream as large: a copy, or a scaling in place."""
        if moved not in self._scale:
            count = max(moved // 8, 1)
            arrays = [
                torch.randn(count, device=self.device) for _ in range(self.timer.sets(4 * count))
            ]
            calls: list[Callable[[], object]] = [
                lambda array=array: array.mul_(-1.0)  # type: ignore[misc]
                for array in arrays
            ]
            times = interleave({"scale": self.timer.prepare(calls)}, _ROUNDS)["scale"]
            self._scale[moved] = 8 * count / statistics.median(times)
        return max(self.copy_rate(moved), self._scale[moved])

    def matmul_rate(self, dtype: torch.dtype = torch.float32) -> float:
        """Operations per second of a square matrix product."""
        if dtype not in self._matmul:
            size = _MATMUL_SIZE["cuda" if self.device.startswith("cuda") else "cpu"]
            left, right, out = (self._square(size, dtype) for _ in range(3))
            call = self.timer.prepare([lambda: torch.mm(left, right, out=out)])
            times = interleave({"mm": call}, _MATMUL_ROUNDS)["mm"]
            self._matmul[dtype] = 2 * size**3 / statistics.median(times)
        return self._matmul[dtype]

    def _square(self, size: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(size, size, device=self.device).to(dtype)

    def judge(
        self, seconds: float, moved: int, matmul_flops: int, dtype: torch.dtype
    ) -> dict[str, Any]:
        """How near a time comes to the limit that binds it.

        Args:
            seconds: Of one call.
            moved: Counted bytes, 0 where none are counted.
            matmul_flops: Counted operations of matrix products, 0 where there are none.
            dtype: Of the products.

        Returns:
            ``copy_bytes_per_second`` and ``matmul_flops_per_second`` as measured, ``floor_s`` (the
            longer of both times), ``bound_by``, ``of_limit`` (floor by time), and ``impossible``
            where the time is shorter than the fastest stream's or the product's by more than the
            slack. Null where nothing is counted.
        """
        copy = self.copy_rate(moved) if moved else None
        # The CPU kernels compute half types in float32.
        kinds = {torch.float32, dtype if self.device.startswith("cuda") else torch.float32}
        matmul = max(map(self.matmul_rate, kinds)) if matmul_flops else None
        floors = {}
        if copy is not None:
            floors["copy"] = moved / copy
        if matmul is not None:
            floors["matmul"] = matmul_flops / matmul
        bound = max(floors, key=lambda name: floors[name]) if floors else None
        floor = floors[bound] if bound else None
        of_limit = None if floor is None else floor / seconds
        least = floors | ({"copy": moved / self.stream_rate(moved)} if moved else {})
        return {
            "copy_bytes_per_second": copy,
            "matmul_flops_per_second": matmul,
            "floor_s": floor,
            "bound_by": bound,
            "of_limit": of_limit,
            "impossible": any(time > SLACK * seconds for time in least.values()),
        }
