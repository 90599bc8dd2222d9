"""Local steps without autograd: traced on a first micro-batch, checked, then run as programs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import torch
from torch import Tensor

from bll_kernels.backends.selection import requested_backend
from bll_kernels.pipeline.agreement import check, restore
from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.capture import NotTraceable, capture, total
from bll_kernels.pipeline.program import Program
from bll_kernels.pipeline.seeds import gpus_of, random_states, set_random_states
from bll_kernels.pipeline.simplify import simplify
from bll_kernels.pipeline.step import GENERATOR, AutogradStep, LocalStep, Updater, direct_update

#: Ways to run local steps.
LOCAL_STEPS: Final = ("auto", "autograd", "traced", "compiled")


@runtime_checkable
class TraceableBlock(Block, Protocol):
    """A block whose step may be traced."""

    def buffers(self) -> Sequence[Tensor]:
        """Everything its forward may write to, such as running statistics."""

    def trace_key(self) -> Hashable:
        """What its Python code depends on beside its inputs.

        Training mode, and where its parameters and buffers lie: a trace with another key is not
        used. Asked before every forward.
        """


@dataclass(frozen=True)
class _Trial:
    """A first micro-batch, run by autograd, and what the block was before it."""

    key: Hashable
    x: Tensor
    labels: Tensor
    buffers: list[Tensor]
    before: list[Tensor]
    gradients: list[Tensor | None]
    generators: list[Tensor]
    output: Tensor
    saved: Any


def make_step(block: Block, updater: Updater, micro_batches: int, local_step: str) -> LocalStep:
    """The local step of a block.

    Args:
        block: The block.
        updater: Of its parameters.
        micro_batches: Micro-batches of a batch.
        local_step: One of `LOCAL_STEPS`.

    Raises:
        TypeError: "traced" or "compiled" for a block without `trace_key` and `buffers`.
    """
    if local_step != "autograd" and isinstance(block, TraceableBlock):
        compiled = local_step == "compiled"
        required = local_step != "auto"
        return TracedStep(block, updater, micro_batches, required=required, compiled=compiled)
    if local_step in ("traced", "compiled"):
        raise TypeError(
            f"blocks: expected `trace_key` and `buffers` of {block.name!r} for {local_step} steps, "
            f"got a {type(block).__name__} without"
        )
    return AutogradStep(block, updater, micro_batches)


class TracedStep:
    """A block's local step as a program of ATen operations, one per shape of input.

    The first micro-batch of a shape runs by autograd. Its step is then traced, simplified, and run
    a second time from the same state: where output and buffers have the same bits and the
    gradients agree, the program serves from here on, and its gradients are those that count.
    Otherwise autograd serves, and `path` says why.

    Args:
        block: The block.
        updater: Of the block's parameters.
        micro_batches: Micro-batches of a batch.
        required: Raise where the step cannot be traced, instead of going on by autograd.
        compiled: Compile the program by TorchInductor. It agrees with autograd within the dtype's
            rounding only, and the first micro-batch of a shape takes seconds.

    Raises:
        RuntimeError: From `backward`, with `required`: the step cannot be traced.
    """

    def __init__(
        self,
        block: TraceableBlock,
        updater: Updater,
        micro_batches: int,
        *,
        required: bool = False,
        compiled: bool = False,
    ) -> None:
        self.block = block
        self.parameters = list(block.parameters())
        self.required = required
        self.compiled = compiled
        self.programs: dict[Hashable, Program | None] = {}
        self.reason: str | None = None
        self.in_parts: str | None = None
        self.micro_batches = micro_batches
        self.updater = updater
        self.latest: tuple[Hashable, Program] | None = None
        self._step_with = direct_update(updater, self.parameters, "step_with")
        checked = direct_update(updater, self.parameters, "step_checked")
        self._step_checked = self._step_with if checked is None else checked
        self._autograd = AutogradStep(block, updater, micro_batches)
        self._sums: list[Tensor | None] | None = None

    @property
    def path(self) -> str:
        """How the step is run: "traced", "compiled", or "autograd" with the reason behind it.

        Where a whole step could not be compiled as one, "compiled, in parts" and the reason.
        """
        if self.reason is not None:
            return f"autograd: {self.reason}"
        way = "compiled" if self.compiled else "traced"
        if self.in_parts is not None:
            return f"{way}, in parts: {self.in_parts}"
        return way if self.programs else f"{way}: not run yet"

    def forward(self, x: Tensor, labels: Tensor) -> tuple[Tensor, Any]:
        """See `LocalStep`."""
        own = self.block.trace_key()
        key = (situation(x, labels), own)
        self.latest = None
        if key in self.programs:
            program = self.programs[key]
            if program is not None:
                self.latest = own, program
            step = self._autograd if program is None else program
            output, saved = step.forward(x, labels)
            return output, (program, saved)
        buffers = list(self.block.buffers())
        before = [buffer.clone() for buffer in buffers]
        gradients = [parameter.grad for parameter in self.parameters]
        generators = random_states(gpus_of(x))
        output, saved = self._autograd.forward(x, labels)
        for parameter in self.parameters:
            parameter.grad = None
        return output, _Trial(key, x, labels, buffers, before, gradients, generators, output, saved)

    def loss(self, saved: Any) -> tuple[Tensor, Any]:
        """See `LocalStep`."""
        if isinstance(saved, _Trial):
            loss, inner = self._autograd.loss(saved.saved)
            return loss, (saved, loss, inner)
        program, inner = saved
        loss, inner = (self._autograd if program is None else program).loss(inner)
        return loss, (program, inner)

    def backward(self, saved: Any) -> None:
        """See `LocalStep`."""
        if len(saved) == 3:
            self._try(*saved)
            return
        program, inner = saved
        if program is None:
            self._autograd.backward(inner)
        else:
            self._add(program.backward(inner))

    def _add(self, gradients: list[Tensor | None]) -> None:
        sums = self._sums
        if sums is None:
            self._sums = gradients
            return
        for at, gradient in enumerate(gradients):
            held = sums[at]
            if gradient is not None:
                sums[at] = gradient if held is None else held.add_(gradient)

    def update(self) -> None:
        """See `LocalStep`."""
        if self._sums is None:
            self._autograd.update()
            return
        sums, self._sums = self._sums, None
        self.learn(sums)

    def learn(self, sums: list[Tensor | None], *, checked: bool = False) -> None:
        """Update the block from a batch's gradients and those that its parameters hold.

        Args:
            sums: Of the micro-batches, for each parameter.
            checked: They come from a program whose gradients an earlier update has checked.
        """
        # Of micro-batches by autograd, and of whatever the user has put there.
        held = any([parameter.grad is not None for parameter in self.parameters])
        if held:
            sums = [total(p.grad, right) for p, right in zip(self.parameters, sums, strict=True)]
        if self.micro_batches > 1:
            for gradient in sums:
                if gradient is not None:
                    gradient.div_(self.micro_batches)
        step = self._step_checked if checked and not held else self._step_with
        if step is not None:
            step(sums)
        else:
            for parameter, gradient in zip(self.parameters, sums, strict=True):
                parameter.grad = gradient
            self.updater.step()
        if held or step is None:
            for parameter in self.parameters:
                parameter.grad = None

    def drop(self) -> None:
        """See `LocalStep`."""
        self._sums = None
        self._autograd.drop()

    def _try(self, trial: _Trial, loss: Tensor, saved: Any) -> None:
        """Finish a first micro-batch, and see whether a program can take over."""
        self._autograd.backward(saved)
        gradients = [parameter.grad for parameter in self.parameters]
        for parameter in self.parameters:
            parameter.grad = None
        try:
            with GENERATOR:
                program, found = self._trace(trial, loss, gradients)
        except NotTraceable as failure:
            if self.required:
                raise RuntimeError(
                    f"local_step: the step of {self.block.name!r} cannot be "
                    f"{'compiled' if self.compiled else 'traced'}: {failure}"
                ) from failure
            self.programs[trial.key], self.reason = None, str(failure)
            for parameter, gradient, earlier in zip(
                self.parameters, gradients, trial.gradients, strict=True
            ):
                parameter.grad = total(earlier, gradient)
            return
        self.programs[trial.key] = program
        for parameter, earlier in zip(self.parameters, trial.gradients, strict=True):
            parameter.grad = earlier
        self._add(found)

    def _trace(
        self, trial: _Trial, loss: Tensor, gradients: list[Tensor | None]
    ) -> tuple[Program, list[Tensor | None]]:
        """The program, and its gradients for the trial's micro-batch, held against autograd's."""
        now = list(self.block.buffers())
        if [id(buffer) for buffer in now] != [id(buffer) for buffer in trial.buffers]:
            raise NotTraceable("its forward replaces a buffer instead of writing to it")
        after = [buffer.clone() for buffer in now]
        graph = capture(self.block, self.parameters, trial.x, trial.labels)
        gpus = gpus_of(trial.x)
        generators = random_states(gpus)
        try:
            simplify(graph)
            program = Program(graph, self.parameters, compiled=self.compiled)
            restore(now, trial.before)
            set_random_states(trial.generators, gpus)
            output, saved = program.forward(trial.x, trial.labels)
            value, saved = program.loss(saved)
            found = program.backward(saved)
            check("output", [output], [trial.output], exact=not self.compiled)
            check("buffers", now, after, exact=not self.compiled)
            check("loss", [value], [loss], exact=False)
            check("gradients", found, gradients, exact=False)
        except BaseException as error:
            restore(now, after)
            if isinstance(error, NotTraceable) or not isinstance(error, Exception):
                raise
            # A step that only its trace cannot do is still done by autograd, and `path` says so.
            raise NotTraceable(f"its trace failed with {type(error).__name__}: {error}") from error
        finally:
            set_random_states(generators, gpus)
        return program, found


def situation(x: Tensor, labels: Tensor) -> Hashable:
    """What a program depends on beside its block.

    Args:
        x: The input.
        labels: Its labels.
    """
    return (
        x.shape, x.stride(), x.dtype, x.device, labels.shape, labels.dtype,
        requested_backend(), torch.is_autocast_enabled(x.device.type),
    )  # fmt: skip
