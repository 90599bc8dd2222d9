"""A batch through all blocks in turn by their programs, with one look at what these depend on.

Asking every block's step for its program, and keeping books between its parts, takes as long as the
operations of a small block. Where an ordinary step has shown which programs serve, a next one of
the same kind calls them one after the other: the same functions, so the same bits. Compiled steps
become one call for each block, which agrees within rounding.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from torch import Tensor

from bll_kernels.pipeline.agreement import check
from bll_kernels.pipeline.capture import NotTraceable
from bll_kernels.pipeline.faults import note, note_step
from bll_kernels.pipeline.program import Program
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.step import GENERATOR, LocalStep
from bll_kernels.pipeline.traced import TracedStep, situation
from bll_kernels.pipeline.whole import WholeStep

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor


#: So many numbers are looked through faster by Python than by a kernel that must be called.
_FEW: Final = 256
_GRADIENT: Final = attrgetter("grad")


@dataclass
class _Served:
    """A block, its program, and the block's key that it is kept for.

    Attributes:
        whole: The step in one call, where steps are compiled and it agrees with the program.
        tried: Whether that is known.
    """

    step: TracedStep
    key: Hashable
    program: Program
    whole: WholeStep | None = None
    tried: bool = False

    def still_serves(self, key: Hashable, program: Program) -> bool:
        """Whether this is what is kept for the key and the program."""
        made = self.whole is None or self.whole.is_current()
        return key == self.key and program is self.program and made

    def is_current(self) -> bool:
        """Whether the block is still what the program, or the step in one call, was made for."""
        if self.step.block.trace_key() != self.key:
            return False
        if self.whole is None:
            return True
        # Gradients that the user has put there are for the ordinary update.
        for gradient in map(_GRADIENT, self.step.parameters):
            if gradient is not None:
                return False
        return self.whole.is_current()


@dataclass
class _Known:
    """What serves one kind of input, and the labels that it has served.

    A step in one call writes in an order of its own, so it must not meet a label that a loss
    refuses: those beyond what was seen go by programs first, whose parts are done in order.
    """

    served: list[_Served]
    low: float = math.inf
    high: float = -math.inf

    def is_usual(self, labels: Tensor) -> bool:
        """Whether no label lies beyond those that were served; asked where it matters."""
        if labels.is_floating_point() or all(one.whole is None for one in self.served):
            return True
        low, high = _extremes(labels)
        return self.low <= low and high <= self.high

    def took(self, labels: Tensor) -> None:
        """These labels were served."""
        low, high = _extremes(labels)
        self.low, self.high = min(self.low, low), max(self.high, high)


def _extremes(labels: Tensor) -> tuple[int, int]:
    """The smallest and the largest."""
    if labels.dim() == 1 and len(labels) <= _FEW:
        values = labels.tolist()
        return min(values), max(values)
    low, high = labels.aminmax()
    return int(low), int(high)


class InTurn:
    """What served the blocks of an executor in earlier batches, by the kind of input.

    Serves batches of one micro-batch, of blocks that draw no random numbers and all have programs.

    Args:
        executor: Whose blocks are run.
    """

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self._steps: list[LocalStep] = []
        self._known: dict[Hashable, _Known] = {}

    def remember(self, x: Tensor, labels: Tensor) -> None:
        """Keep what has just served a batch, by the blocks' own steps.

        Args:
            x: The first block's input.
            labels: Its labels.
        """
        executor = self.executor
        if executor.micro_batches > 1 or any(draws is not False for draws in executor.draws):
            return
        found = situation(x, labels)
        same = self._steps == executor.steps
        known = (self._known.get(found) if same else None) or _Known([])
        served = []
        for at, step in enumerate(executor.steps):
            if not isinstance(step, TracedStep) or step.latest is None:
                return
            key, program = step.latest
            if known.served and known.served[at].still_serves(key, program):
                served.append(known.served[at])
            else:
                served.append(_Served(step, key, program, tried=not step.compiled or not x.is_cpu))
        if not same:
            self._known.clear()
            self._steps = list(executor.steps)
        known.served = served
        self._known[found] = known

    def step(
        self, x: Tensor, labels: Tensor, micro_batch: int
    ) -> tuple[list[Tensor], Tensor] | None:
        """Train all blocks on a batch, where it is known how.

        Shapes and strides between blocks follow from the input, as the programs are the same.

        Args:
            x: The first block's input.
            labels: Its labels.
            micro_batch: Counted through the run, for errors.

        Returns:
            The blocks' losses and the last one's output; or None, and nothing was done.
        """
        if self._steps != self.executor.steps:
            return None
        known = self._known.get(situation(x, labels))
        if known is None:
            return None
        for one in known.served:
            if not one.is_current():
                return None
        usual = known.is_usual(labels)
        losses = []
        try:
            for one in known.served:
                x, loss = _train(one, x, labels, micro_batch, usual)
                losses.append(loss)
        except BaseException:
            # Whoever keeps the error keeps this frame; it must not keep the activations.
            del x
            raise
        if not usual:
            known.took(labels)
        return losses, x


def _train(
    one: _Served, x: Tensor, labels: Tensor, micro_batch: int, usual: bool
) -> Sequence[Tensor]:
    """Output and loss of a block; it is trained."""
    if one.whole is not None and usual:
        try:
            return one.whole(x, labels)
        except BaseException as error:
            note_step(error, one.step.block.name, micro_batch)
            del x
            raise
    try:
        return (_by_parts if one.tried else _try)(one, x, labels, micro_batch)
    except BaseException:
        del x
        raise


def _by_parts(one: _Served, x: Tensor, labels: Tensor, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Output and loss of a block that is trained by its program."""
    forward, loss, backward = one.program.parts
    doing = Kind.FORWARD
    try:
        output, saved = forward(x, labels)
        doing = Kind.LOSS
        value, saved = loss(*saved)
        doing = Kind.BACKWARD
        gradients = backward(*saved)
        del saved
        doing = Kind.UPDATE
        one.step.learn(gradients, checked=True)
    except BaseException as error:
        note(error, one.step.block.name, doing, micro_batch)
        # Whoever keeps the error keeps this frame; it must not keep the activations.
        x = output = saved = gradients = None  # type: ignore[assignment]  # noqa: F841
        raise
    return output, value


def _try(one: _Served, x: Tensor, labels: Tensor, micro_batch: int) -> tuple[Tensor, Tensor]:
    """Train a block by its program, and see whether one call does the same to copies."""
    step = one.step
    whole, reason = None, ""
    before: list[Tensor] = []
    copies: list[Tensor] = []
    made: Sequence[Tensor] = ()
    try:
        with GENERATOR:
            whole = WholeStep(one.program, step.parameters, step.updater)
            before = [tensor.clone() for tensor in whole.state]
            copies = [tensor.clone() for tensor in before]
            made = whole.on(copies, x, labels)
    except Exception as error:
        # Of Inductor; or the batch is at fault, which the program is about to say.
        own = isinstance(error, NotTraceable)
        whole, reason = None, str(error) if own else f"{type(error).__name__}: {error}"
    except BaseException as error:
        note_step(error, step.block.name, micro_batch)
        del x, before, copies, made
        raise
    output, loss = _by_parts(one, x, labels, micro_batch)
    one.tried = True
    if whole is not None:
        try:
            check("output and loss", made, [output, loss], exact=False)
            whole.compare(before, copies)
        except NotTraceable as error:
            whole, reason = None, str(error)
    one.whole = whole
    step.in_parts = reason or None
    return output, loss
