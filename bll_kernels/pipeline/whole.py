"""A block's whole local step, its update included, as one function compiled by TorchInductor.

Of a small block the calls between forward, loss, backward and update take longer than their work.
In one graph there is one call, and the update is fused with what makes its gradients.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch
from torch import Tensor, fx

from bll_kernels.optim import BlockAdam
from bll_kernels.optim_kernels import Lists
from bll_kernels.optim_plain import RATES, adam_, adam_decay, adam_move_, adam_rates
from bll_kernels.pipeline.agreement import check
from bll_kernels.pipeline.capture import NotTraceable
from bll_kernels.pipeline.compiled import compile_graph, without_aliases
from bll_kernels.pipeline.program import Program
from bll_kernels.pipeline.simplify import attribute
from bll_kernels.pipeline.step import Updater
from bll_kernels.pipeline.together import shares

_ARRAYS: Final = {torch.float32: "f", torch.float64: "d"}


@dataclass
class _Group:
    """Some parameters of a block with their optimiser, and the numbers of its next step."""

    optimizer: BlockAdam
    index: int
    places: list[int]
    lists: Lists
    numbers: array[float]
    rates: Tensor
    decay: str | None
    step: int = 0
    version: int = -1

    def tensors(self) -> list[Tensor]:
        return [*self.lists.first, *self.lists.second, self.lists.counters]

    def is_current(self) -> bool:
        """Whether the lists are still the optimiser's; steps by others are counted."""
        if self.optimizer._lists.get(self.index) is not self.lists:
            return False
        # What a compiled step writes does not change the version.
        if self.lists.counters._version != self.version:
            steps = self.lists.counters.tolist()
            if steps.count(steps[0]) != len(steps):
                return False
            self.step, self.version = int(steps[0]), self.lists.counters._version
        return adam_decay(self.optimizer.param_groups[self.index]) == self.decay

    def prepare(self) -> None:
        """The numbers of the next step."""
        rates = adam_rates(self.optimizer.param_groups[self.index], self.step + 1)
        self.numbers[:] = array(self.numbers.typecode, rates)

    def restore(self) -> None:
        """The counters of the steps that were done."""
        self.lists.counters.fill_(self.step)
        self.version = self.lists.counters._version


class WholeStep:
    """Forward, loss, backward and update of a block on one micro-batch.

    Args:
        program: Of the block, for the shape of the input.
        parameters: Of the block.
        updater: Of these parameters: `BlockAdam`, with states for all of them.

    Raises:
        NotTraceable: The update cannot be part of the step; the message says why.
    """

    def __init__(self, program: Program, parameters: Sequence[Tensor], updater: Updater) -> None:
        self._parameters = [parameter.detach() for parameter in parameters]
        self._groups = _groups(updater, parameters)
        self._function, self._held = _lifted(program.module)
        moments = [tensor for group in self._groups for tensor in group.tensors()]
        # A compiler must see that what a step reads is what it writes to.
        self._on, self.state, self._places = without_aliases(
            self._step, [*self._parameters, *self._held, *moments]
        )
        self._run: Callable[[list[Any]], Sequence[Tensor]] | None = None

    def is_current(self) -> bool:
        """Whether the optimiser's state is the one the step was made with."""
        return all(group.is_current() for group in self._groups)

    def __call__(self, x: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """Output and loss; the block is trained.

        Args:
            x: The input.
            labels: Its labels.
        """
        try:
            found = self.on(self.state, x, labels)
        except BaseException:
            # Counters may be the first that a step writes to.
            for group in self._groups:
                group.restore()
            raise
        for group in self._groups:
            group.step += 1
        return found

    def on(self, state: Sequence[Tensor], x: Tensor, labels: Tensor) -> Sequence[Tensor]:
        """Output and loss of a step that writes to other tensors, like `state`."""
        for group in self._groups:
            group.prepare()
        rates = [group.rates for group in self._groups]
        run = self._run
        if run is not None:
            return run([*state, *rates, x, labels])
        run = compile_graph(self._on, [*state, *rates, x, labels])
        # Behind Inductor's own books of a call, which are opened at the first.
        self._run = getattr(run, "current_callable", None) or run
        return run([*state, *rates, x, labels])

    def compare(self, before: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Hold a step that was done on copies against the one the block has done.

        Args:
            before: `state` before the step.
            found: The copies after it.

        Raises:
            NotTraceable: They differ by more than rounding.
        """
        count, held = len(self._parameters), len(self._held)
        first = count + held
        for group in self._groups:
            size = len(group.places)
            for what, start, stop in (
                ("means of gradients", first, first + size),
                ("means of squared gradients", first + size, first + 2 * size),
                ("counts of steps", first + 2 * size, first + 2 * size + 1),
            ):
                places = self._places[start:stop]
                check(what, [found[at] for at in places], [self.state[at] for at in places],
                      exact=False)  # fmt: skip
            # Where a gradient is nothing but rounding, Adam's step is as large as elsewhere:
            # parameters are held against the step that these moments make.
            for at, member in enumerate(group.places):
                place = self._places[member]
                moved = before[place].clone()
                mean = found[self._places[first + at]]
                square = found[self._places[first + size + at]]
                adam_move_(moved, mean, square, group.rates, decay=group.decay)
                check("parameters", [found[place]], [moved], exact=False)
            first += 2 * size + 1
        owned = set(self._places[:count])
        others = [at for at in self._places[count : count + held] if at not in owned]
        check("buffers", [found[at] for at in others], [self.state[at] for at in others],
              exact=False)  # fmt: skip

    def _step(self, *given: Tensor) -> tuple[Tensor, Tensor]:
        """The step in plain operations, on all tensors in the order of `__init__` and `on`."""
        rest = iter(given)
        parameters = list(islice(rest, len(self._parameters)))
        held = list(islice(rest, len(self._held)))
        moments = [list(islice(rest, len(group.tensors()))) for group in self._groups]
        rates = list(islice(rest, len(self._groups)))
        output, loss, gradients = self._function(*held, *rest)
        for group, own, numbers in zip(self._groups, moments, rates, strict=True):
            count = len(group.places)
            for at, first, second in zip(group.places, own[:count], own[count:-1], strict=True):
                adam_(parameters[at], gradients[at], first, second, numbers, decay=group.decay)
            own[-1].add_(1)
        return output, loss


def _groups(updater: Updater, parameters: Sequence[Tensor]) -> list[_Group]:
    """The groups that update each of the parameters once, by Adam on the CPU."""
    groups = []
    for optimizer, index, places in shares(updater, parameters) or []:
        lists = optimizer._lists.get(index)
        # A class made of it may do something else.
        if type(optimizer) is not BlockAdam or lists is None or lists.missing or lists.backend:
            raise NotTraceable("its optimiser is not BlockAdam with gradients of all parameters")
        dtypes = {parameters[at].dtype for at in places}
        code = _ARRAYS.get(next(iter(dtypes)))
        if len(dtypes) > 1 or code is None:
            raise NotTraceable(f"its parameters are {', '.join(map(str, dtypes))}")
        numbers = array(code, [0.0] * RATES)
        rates = torch.frombuffer(numbers, dtype=dtypes.pop())
        decay = adam_decay(optimizer.param_groups[index])
        group = _Group(optimizer, index, places, lists, numbers, rates, decay)
        if not group.is_current():
            raise NotTraceable("its parameters are at different steps")
        groups.append(group)
    if sorted(at for group in groups for at in group.places) != list(range(len(parameters))):
        raise NotTraceable("its optimiser is not BlockAdam over each of its parameters")
    return groups


def _lifted(module: fx.GraphModule) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph as a function of what it holds and its inputs, and what it holds."""
    graph = fx.Graph()
    held: dict[str, Tensor] = {}
    names: dict[str, fx.Node] = {}
    known: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            name = str(node.target)
            if name not in held:
                held[name] = attribute(module, node).detach()
                names[name] = graph.placeholder(name.replace(".", "_"))
            known[node] = names[name]
    for node in sorted(module.graph.nodes, key=lambda node: node.op != "placeholder"):
        if node.op != "get_attr":
            known[node] = graph.node_copy(node, known.__getitem__)
    return fx.GraphModule(torch.nn.Module(), graph), list(held.values())
