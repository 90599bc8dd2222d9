"""Equal blocks in a row whose local steps run as one over stacked tensors."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor, fx

from bll_kernels.backends.selection import requested_backend
from bll_kernels.pipeline.agreement import check, restore
from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.capture import NotTraceable
from bll_kernels.pipeline.equal import StackableBlock
from bll_kernels.pipeline.lifted import batched, difference, lift
from bll_kernels.pipeline.program import Program
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.step import GENERATOR, AutogradStep, Updater
from bll_kernels.pipeline.together import Together


class Stack:
    """Equal blocks, whose parameters and buffers are rows of one tensor each.

    The blocks keep their tensors: `parameter.data` becomes a view of the stacked one, as
    `torch.func.stack_module_state` would copy them, so that state dicts, evaluation and loading in
    place see and change what the batched step reads. Whoever gives a parameter other memory, as
    `Module.to` does, is found out at the start of a run, and the stack is made again.

    Args:
        blocks: The equal blocks.
        updaters: Theirs.
        micro_batches: Micro-batches of a batch.
        compiled: Compile the step in which all of them are in flight by TorchInductor. Those of
            fewer, while a run fills and empties, stay traced: each would take seconds.

    Attributes:
        doing: The part of the step that is under way.

    Raises:
        ValueError: A parameter is not contiguous, or belongs to two blocks.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        updaters: Sequence[Updater],
        micro_batches: int,
        *,
        compiled: bool = False,
    ) -> None:
        self.blocks = [block for block in blocks if isinstance(block, StackableBlock)]
        if len(self.blocks) != len(blocks):
            raise TypeError("blocks: expected `structure`, `trace_key` and `buffers` of each")
        self.updaters = list(updaters)
        self.micro_batches = micro_batches
        self.compiled = compiled
        self.doing = Kind.FORWARD
        self.together = Together(updaters, [block.parameters() for block in self.blocks])
        self._check_memory()
        self.parameters: list[Tensor] = []
        self.buffers: list[Tensor] = []
        self._lifted: dict[Hashable, fx.GraphModule] = {}
        self._programs: dict[Hashable, Program] = {}
        self._state: Hashable = None
        self._sums: list[Tensor | None] = []

    def _check_memory(self) -> None:
        seen: dict[int, str] = {}
        for block in self.blocks:
            for tensor in (*block.parameters(), *block.buffers()):
                if not tensor.is_contiguous():
                    raise ValueError(
                        f"batched_blocks: expected contiguous parameters of {block.name!r}, got "
                        f"one of shape {list(tensor.shape)} with strides {tensor.stride()}"
                    )
                other = seen.setdefault(id(tensor), block.name)
                if other != block.name:
                    raise ValueError(
                        f"batched_blocks: expected parameters of their own, got one that {other!r} "
                        f"and {block.name!r} share"
                    )

    def begin(self) -> None:
        """Start a run: see that the blocks' tensors are rows of the stacked ones.

        Raises:
            ValueError: a parameter has a gradient, of which a batched step would know nothing; or
                the blocks' tensors are no longer of one shape, dtype and device.
        """
        for block in self.blocks:
            if any(parameter.grad is not None for parameter in block.parameters()):
                raise ValueError(
                    "batched_blocks: expected no gradients before a step, got some in "
                    f"{block.name!r}"
                )
        rows = [[*block.parameters(), *block.buffers()] for block in self.blocks]
        if not self._attached(rows):
            self._attach(rows, len(self.blocks[0].parameters()))
        keys = tuple(block.trace_key() for block in self.blocks)
        kind = self.parameters[0].device.type if self.parameters else "cpu"
        self._state = (keys, requested_backend(), torch.is_autocast_enabled(kind))

    def _attached(self, rows: list[list[Tensor]]) -> bool:
        stacked = [*self.parameters, *self.buffers]
        return bool(stacked) and all(
            tensor.data_ptr() == whole.data_ptr() + member * whole.stride(0) * whole.itemsize
            and tensor.dtype == whole.dtype
            for member, own in enumerate(rows)
            for tensor, whole in zip(own, stacked, strict=True)
        )

    def _attach(self, rows: list[list[Tensor]], parameters: int) -> None:
        stacked = []
        for column in zip(*rows, strict=True):
            if len({(x.shape, x.dtype, x.device) for x in column}) != 1:
                raise ValueError(
                    "batched_blocks: expected tensors of one shape, dtype and device, got "
                    f"{[(list(x.shape), x.dtype, str(x.device)) for x in column]}"
                )
            stacked.append(torch.stack([x.detach() for x in column]))
        for column, whole in zip(zip(*rows, strict=True), stacked, strict=True):
            for tensor, row in zip(column, whole.unbind(), strict=True):
                tensor.data = row
        self.parameters, self.buffers = stacked[:parameters], stacked[parameters:]
        self._programs.clear()
        self._lifted.clear()
        self._sums = [None] * parameters

    def step(
        self, low: int, high: int, x: Tensor, labels: Tensor, ends: Sequence[bool]
    ) -> tuple[Tensor, Tensor]:
        """Local steps of members `low` to `high` - 1, each on a micro-batch of its own.

        Args:
            low: First member.
            high: Behind the last.
            x: Inputs [high - low, batch, ...].
            labels: [high - low, batch, ...].
            ends: Whether a member's micro-batch is the last of its batch, so that it updates.

        Returns:
            Outputs [high - low, batch, ...] and losses [high - low], detached.

        Raises:
            RuntimeError: the step cannot be batched, or does not agree with autograd.
        """
        self.doing = Kind.FORWARD
        key = (self._state, low, high, x.shape, x.dtype, labels.shape, labels.dtype)
        program = self._programs.get(key)
        if program is None:
            with GENERATOR:
                program = self._programs[key] = self._make(low, high, x, labels)
        output, saved = program.forward(x, labels)
        self.doing = Kind.LOSS
        losses, saved = program.loss(saved)
        self.doing = Kind.BACKWARD
        gradients = program.backward(saved)
        del saved
        if self.micro_batches == 1:
            self.doing = Kind.UPDATE
            self.together.step(low, high, gradients)
        else:
            self._add(low, high, gradients)
            self.doing = Kind.UPDATE
            for start, stop in _runs(ends):
                self._update(low + start, low + stop)
        return output, losses

    def _add(self, low: int, high: int, gradients: list[Tensor | None]) -> None:
        for at, gradient in enumerate(gradients):
            if gradient is None:
                continue
            total = self._sums[at]
            if total is None:
                total = self._sums[at] = torch.zeros_like(self.parameters[at])
            total[low:high].add_(gradient)

    def _update(self, low: int, high: int) -> None:
        means = [None if total is None else total[low:high] for total in self._sums]
        for mean in means:
            if mean is not None:
                mean.div_(self.micro_batches)
        self.together.step(low, high, means)
        for mean in means:
            if mean is not None:
                mean.zero_()

    def drop(self) -> None:
        """Drop what gradients there are: the batch has failed."""
        self._sums = [None] * len(self.parameters)

    def _make(self, low: int, high: int, x: Tensor, labels: Tensor) -> Program:
        members = self.blocks[low:high]
        names = f"{members[0].name!r} to {members[-1].name!r}"
        buffers = [whole[low:high] for whole in self.buffers]
        # Of all members: tracing counts in 0-dim buffers.
        before = [whole.clone() for whole in self.buffers]
        try:
            step = self._lift(x[0], labels[0])
            parameters = [whole[low:high] for whole in self.parameters]
            compiled = self.compiled and len(members) == len(self.blocks)
            program = batched(step, parameters, buffers, x, labels, compiled=compiled)
            self._compare(program, low, x, labels)
        except NotTraceable as failure:
            raise RuntimeError(
                f"batched_blocks: the steps of {names} cannot run as one: {failure}"
            ) from failure
        finally:
            restore(self.buffers, before)
            for block in members:
                for parameter in block.parameters():
                    parameter.grad = None
        return program

    def _lift(self, x: Tensor, labels: Tensor) -> fx.GraphModule:
        """The step of one member, which is that of every other."""
        key = (self._state, x.shape, x.dtype, labels.shape, labels.dtype)
        if key not in self._lifted:
            first, *others = self.blocks
            step = lift(first, first.parameters(), first.buffers(), x, labels)
            for block in others:
                other = lift(block, block.parameters(), block.buffers(), x, labels)
                unlike = difference(step, other)
                if unlike is not None:
                    raise NotTraceable(f"{first.name!r} and {block.name!r} differ: {unlike}")
            self._lifted[key] = step
        return self._lifted[key]

    def _compare(self, program: Program, low: int, x: Tensor, labels: Tensor) -> None:
        """Hold a new program against autograd, member by member; buffers are left changed."""
        high = low + len(x)
        buffers = [whole[low:high] for whole in self.buffers]
        before = [whole.clone() for whole in buffers]
        output, saved = program.forward(x, labels)
        losses, saved = program.loss(saved)
        gradients = program.backward(saved)
        after = [whole.clone() for whole in buffers]
        restore(buffers, before)
        for member, (block, updater) in enumerate(
            zip(self.blocks[low:high], self.updaters[low:high], strict=True)
        ):
            own = list(block.buffers())
            alone = AutogradStep(block, updater, self.micro_batches)
            truth, kept = alone.forward(x[member], labels[member])
            loss, gradient = alone.loss(kept)
            alone.backward(gradient)
            if [id(tensor) for tensor in own] != [id(tensor) for tensor in block.buffers()]:
                raise NotTraceable("a forward replaces a buffer instead of writing to it")
            found = [None if g is None else g[member] for g in gradients]
            check("output", [output[member]], [truth], exact=False)
            check("loss", [losses[member]], [loss], exact=False)
            check("gradients", found, [p.grad for p in block.parameters()], exact=False)
            check("buffers", [whole[member] for whole in after], own, exact=False)


def _runs(flags: Sequence[bool]) -> list[tuple[int, int]]:
    """(start, stop) of the runs of True."""
    found, start = [], None
    for at, flag in enumerate([*flags, False]):
        if flag and start is None:
            start = at
        elif not flag and start is not None:
            found.append((start, at))
            start = None
    return found
