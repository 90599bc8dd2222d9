"""Where to cut a chain of units into blocks of nearly equal cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn


def multiply_adds(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Multiply-adds of every convolution and linear layer for one image, by module name.

    Nothing is computed: shapes are found on the meta device, on a copy of ``model``.
    """
    counts: dict[str, int] = {}
    shadow = copy.deepcopy(model).to("meta").eval()
    handles = []
    for name, module in shadow.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear):
            continue

        def count(
            layer: nn.Module, _: tuple[torch.Tensor, ...], out: torch.Tensor, name: str = name
        ) -> None:
            # Every position of a channel uses all weights of that channel once; no bias counted.
            weights = sum(p.numel() for p in layer.parameters() if p.ndim > 1)
            counts[name] = out[0, 0].numel() * weights

        handles.append(module.register_forward_hook(count))
    with torch.no_grad():
        shadow(torch.empty(1, *image_shape, device="meta"))
    return counts


def balanced_ends(costs: Sequence[int], parts: int) -> list[int]:
    """Cut ``costs`` into ``parts`` runs so that the dearest run is as cheap as possible.

    Args:
        costs: Non-negative costs of the units, in order.
        parts: Number of non-empty runs.

    Returns:
        Index of the last unit of every run but the last, ascending; of all best cuts, the one
        whose runs end earliest.

    Raises:
        ValueError: ``parts`` is not between 1 and ``len(costs)``.
    """
    if not 1 <= parts <= len(costs):
        raise ValueError(f"parts: expected 1 to {len(costs)}, got {parts}")
    best: dict[tuple[int, int], tuple[int, list[int]]] = {}

    def solve(start: int, remaining: int) -> tuple[int, list[int]]:
        if remaining == 1:
            return sum(costs[start:]), []
        key = (start, remaining)
        if key not in best:
            candidates = []
            for end in range(start, len(costs) - remaining + 1):
                rest, ends = solve(end + 1, remaining - 1)
                candidates.append((max(sum(costs[start : end + 1]), rest), [end, *ends]))
            best[key] = min(candidates)
        return best[key]

    return solve(0, parts)[1]
