"""Updates of equal blocks in one kernel, where their optimisers are this package's.

Each block keeps its optimiser, its state and its count of steps; the kernel takes the tensors of
all. Blocks of a pipeline are at different steps at the same time, so moments are not stacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bll_kernels.optim import BlockAdam, BlockSGD
from bll_kernels.optim_kernels import Lists
from bll_kernels.pipeline.step import Updater

BlockOptimizer = BlockAdam | BlockSGD
#: An optimiser, one of its groups, and where that group's parameters stand among the block's.
Share = tuple[BlockOptimizer, int, list[int]]


def shares(updater: Updater, parameters: Sequence[Tensor]) -> list[Share] | None:
    """The groups of this package's optimisers that update a block; None: another updates it.

    Args:
        updater: Of the block. One that is no optimiser itself tells by a method `shares`.
        parameters: Of the block.
    """
    if isinstance(updater, BlockAdam | BlockSGD):
        place = {id(parameter): at for at, parameter in enumerate(parameters)}
        groups = [[place.get(id(p)) for p in group["params"]] for group in updater.param_groups]
        if any(at is None for places in groups for at in places):
            return None
        return [(updater, index, [at for at in places if at is not None])
                for index, places in enumerate(groups)]  # fmt: skip
    told = getattr(updater, "shares", None)
    return None if told is None else told()


def settings(updater: Updater, parameters: Sequence[Tensor]) -> tuple[Any, ...]:
    """Kind and options of a block's optimiser, to be compared with those of another block."""
    found = shares(updater, parameters)
    if found is not None:
        return tuple((type(o), *places, *_options(o.param_groups[i])) for o, i, places in found)
    groups = getattr(updater, "param_groups", ())
    return (type(updater), *(_options(group) for group in groups))


def _options(group: dict[str, Any]) -> tuple[Any, ...]:
    """What a group's kernel takes beside tensors; a rate in memory counts as itself."""
    return tuple(
        (name, id(value) if isinstance(value, Tensor) else value)
        for name, value in sorted(group.items())
        if name not in ("params", "name")
    )


@dataclass
class _Column:
    """The groups that hold the same parameters of every block."""

    members: list[tuple[BlockOptimizer, int]]
    places: list[int]
    used: list[int] = field(default_factory=list)
    lists: Lists | None = None
    states: list[Any] = field(default_factory=list)
    parts: dict[tuple[int, int], Lists] = field(default_factory=dict)

    def options_differ(self, low: int, high: int) -> bool:
        first, *others = [
            _options(optimizer.param_groups[index]) for optimizer, index in self.members[low:high]
        ]
        return any(other != first for other in others)

    def _stale(self, low: int, high: int) -> bool:
        """Whether somebody has stepped a block alone since, or loaded its state."""
        return self.lists is None or any(
            index in optimizer._lists or optimizer.state[first] is not state
            for (optimizer, index), (first, state) in zip(
                self.members[low:high], self.states[low:high], strict=True
            )
        )

    def step(
        self,
        low: int,
        high: int,
        parameters: Sequence[Sequence[Tensor]],
        gradients: Sequence[Tensor | None],
    ) -> None:
        used = [at for at in self.places if gradients[at] is not None]
        if not used:
            return
        if used != self.used or self._stale(low, high):
            self._build(used, parameters)
        if self.lists is None:
            raise RuntimeError("the lists of the parameters were not built")
        part = self.parts.get((low, high))
        if part is None:
            width = len(used)
            part = self.parts[low, high] = self.lists.part(low * width, high * width)
        optimizer, index = self.members[low]
        rows = [g.unbind() for at in used if (g := gradients[at]) is not None]
        optimizer._update(
            optimizer.param_groups[index],
            part,
            [gradient for member in zip(*rows, strict=True) for gradient in member],
            None,
            None,
        )

    def _build(self, used: list[int], parameters: Sequence[Sequence[Tensor]]) -> None:
        tensors, states, self.states = [], [], []
        for (optimizer, index), own in zip(self.members, parameters, strict=True):
            optimizer._lists.pop(index, None)
            for at in used:
                if not optimizer.state[own[at]]:
                    optimizer._start(own[at], index)
                tensors.append(own[at])
                states.append(optimizer.state[own[at]])
            self.states.append((own[used[0]], optimizer.state[own[used[0]]]))
        self.used, self.lists = used, Lists(tensors, states)
        self.parts.clear()


class Together:
    """Updates of equal blocks.

    Args:
        updaters: One per block.
        parameters: Of each block, in the same order.
    """

    def __init__(self, updaters: Sequence[Updater], parameters: Sequence[Sequence[Tensor]]) -> None:
        self.updaters = list(updaters)
        self.parameters = [list(own) for own in parameters]
        found = [shares(u, own) for u, own in zip(self.updaters, self.parameters, strict=True)]
        self.columns: list[_Column] | None = None
        known = [own for own in found if own is not None]
        forms = {tuple((type(o), tuple(places)) for o, _, places in own) for own in known}
        if len(known) == len(found) and len(forms) == 1:
            self.columns = [
                _Column([(optimizer, index) for optimizer, index, _ in column], column[0][2])
                for column in zip(*known, strict=True)
            ]

    @torch.no_grad()
    def step(self, low: int, high: int, gradients: Sequence[Tensor | None]) -> None:
        """Update blocks `low` to `high` - 1.

        Args:
            low: First block.
            high: Behind the last.
            gradients: For each parameter, stacked [high - low, ...], each row in the layout of the
                parameter; or None.
        """
        columns = self.columns
        if columns is None or any(column.options_differ(low, high) for column in columns):
            for member in range(low, high):
                self._alone(member, [None if g is None else g[member - low] for g in gradients])
            return
        for column in columns:
            column.step(low, high, self.parameters, gradients)

    def _alone(self, member: int, gradients: list[Tensor | None]) -> None:
        updater, own = self.updaters[member], self.parameters[member]
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        updater.step()
        for parameter in own:
            parameter.grad = None
