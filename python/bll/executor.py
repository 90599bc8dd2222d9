"""A wrapped model as blocks for the pipeline executor."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from operator import attrgetter
from typing import Final

import torch
from torch import Tensor, nn

from bll.chain import chain
from bll.feedback_chain import FeedbackBlock
from bll.feedback_lane import ChainedFeedback
from bll.handle import LocalLearning
from bll.hooks import check_labels, wrapped_handle
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.executor import Executor, OptimizerFactory

_TRAINING: Final = attrgetter("training")
_TRAINED: Final = attrgetter("requires_grad")


class WrappedBlock:
    """Some children of a wrapped `nn.Sequential` and their local loss.

    Args:
        handle: Of the wrapped model.
        index: Number of the block.
        children: What it runs, in order.
        autocast: Dtype that forward and loss run in by `torch.autocast`; None: in that of the
            parameters.

    Attributes:
        name: The block's name, as in `model.bll`.
        reads: What the model's rule reads.
    """

    def __init__(
        self,
        handle: LocalLearning,
        index: int,
        children: list[nn.Module],
        autocast: torch.dtype | None = None,
    ) -> None:
        self.handle = handle
        self.autocast = autocast
        self.index = index
        self.children = children
        self.name = handle.blocks[index].name
        self.reads = frozenset({"label", "output"}) if self._last else handle.rule.reads
        self._modules = [module for child in children for module in child.modules()]
        own = [p for child in children for p in child.parameters() if p.requires_grad]
        self._message = self._trained_by_loss()
        self._parameters = [*own, *self._message]
        of_message = list(self._own_message())
        self._owners = [
            (module._buffers, name)
            for module in (*self._modules, *of_message)
            for name in module._buffers
        ]
        self._keeps_input = not self._last and "input" in self.reads
        self._input: Tensor | None = None
        # A block before this one whose output this one writes to hands on a copy.
        self._copies = index > 0 and handle.blocks[index - 1].hands_on_copy

    @property
    def _last(self) -> bool:
        return self.index == len(self.handle.blocks) - 1

    def _own_message(self) -> Iterator[nn.Module]:
        messages = self.handle.messages
        return messages[self.index].modules() if self.index < len(messages) else iter(())

    def _trained_by_loss(self) -> list[Tensor]:
        messages = self.handle.messages
        if self.index >= len(messages):
            return []
        return [p for p in messages[self.index].parameters() if p.requires_grad]

    def parameters(self) -> Sequence[Tensor]:
        """The children's parameters, then the message's, that are trained."""
        return self._parameters

    def buffers(self) -> Sequence[Tensor]:
        """The children's buffers, then the message's."""
        return [x for owner, name in self._owners if (x := owner[name]) is not None]

    def trace_key(self) -> Hashable:
        """Training modes, and where parameters and buffers lie."""
        # Asked before every forward: loops in C.
        return (
            *map(_TRAINING, self._modules),
            *map(_TRAINED, self._parameters),
            *map(Tensor.data_ptr, [*self._parameters, *self.buffers()]),
        )

    def structure(self) -> Hashable:
        """Kinds and options of the modules, and how the loss reads the output."""
        message = self._own_message()
        kinds = [(type(x), x.extra_repr()) for x in (*self._modules, *message)]
        feature = self.handle.blocks[self.index].feature
        return (tuple(kinds), feature, self._last, self._copies, self._keeps_input, self.autocast)

    def take_input(self, x: Tensor) -> Tensor:
        """What the children are given for an input; where the rule reads that, it is kept.

        A copy, where the block writes to its input and that is also the output of the one before.
        """
        if self._keeps_input:
            self._input = x
        return x.clone() if self._copies else x

    def forward(self, x: Tensor) -> Tensor:
        """Run the children in order."""
        x = self.take_input(x)
        with self._casting(x):
            for child in self.children:
                x = child(x)
        return x

    def _casting(self, x: Tensor) -> AbstractContextManager[object]:
        if self.autocast is None:
            return nullcontext()
        # Weights cast once for several uses would outlive the step they belong to.
        return torch.autocast(x.device.type, dtype=self.autocast, cache_enabled=False)

    def loss_and_grad(self, output: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rule's loss, or the last block's cross-entropy, and its gradient."""
        own = self._message
        # What the last forward got: a block's loss comes before its next forward.
        given, self._input = self._input, None
        with torch.enable_grad(), self._casting(output):
            leaf = output.detach().requires_grad_()
            loss = self.handle.block_loss(self.index, leaf, check_labels(labels), given)
            gradient, *others = torch.autograd.grad(loss, [leaf, *own])
        for parameter, extra in zip(own, others, strict=True):
            parameter.grad = extra if parameter.grad is None else parameter.grad + extra
        return loss.detach(), gradient


def wrapped_blocks(model: nn.Module, autocast: torch.dtype | None = None) -> list[WrappedBlock]:
    """Return the blocks of a wrapped `nn.Sequential` in order, each to be run apart.

    Args:
        model: A wrapped `nn.Sequential`, nested ones included, with known shapes.
        autocast: As in `WrappedBlock`.

    Raises:
        ValueError: The model is not wrapped or not ready.
        TypeError: The model is no `nn.Sequential`, or is cut inside a module that is none.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    cuts = [block.cut for block in handle.blocks if block.cut is not None]
    children = chain(model, cuts)
    names = [name for name, _ in children]
    ends = [names.index(cut) + 1 for cut in cuts] + [len(children)]
    starts = [0, *ends[:-1]]
    return [
        WrappedBlock(handle, index, [child for _, child in children[start:end]], autocast)
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def feedback_path(handle: LocalLearning) -> ChainedFeedback | None:
    """Return the model's feedback as a path that runs apart from the blocks; None: it has none."""
    messages = [message for message in handle.messages if isinstance(message, FeedbackBlock)]
    if not messages or len(messages) < len(handle.messages):
        return None
    return ChainedFeedback(messages)


def executor(
    model: nn.Module,
    optimizer_factory: OptimizerFactory = BlockAdam,
    *,
    mode: str = "sequential",
    depth: int | None = None,
    micro_batches: int = 1,
    slots: int = 2,
    threads: int = 1,
    seed: int = 0,
    local_step: str = "auto",
    batched_blocks: bool = False,
    autocast: torch.dtype | None = None,
) -> Executor:
    """Return an executor that trains a wrapped `nn.Sequential` block by block.

    `executor.step(x, labels)` does forward, local losses, backwards and updates; the model is
    trained in place. Blocks may run at once (mode "pipelined"); the bits are those of mode
    "sequential" either way. Chained feedback has a lane of its own in mode "pipelined", whose
    messages are older than those of "sequential": `certificate` says by how many updates.

    Args:
        model: A wrapped `nn.Sequential`, nested ones included, on the CPU, with known shapes
            (wrapped with `example`, or run once). Its training mode is left as it is.
        optimizer_factory: Makes the optimiser of one block from its parameters.
        mode: "sequential", "pipelined", "graphed" or "auto"; see `Executor`.
        depth: Blocks in flight; by default all.
        micro_batches: Equal parts a batch is cut into.
        slots: Buffers between two blocks.
        threads: Intra-op threads of a block.
        seed: Of the random numbers drawn in forward passes.
        local_step: "auto", without autograd where a block's step can be traced; "autograd"; or
            "traced" or "compiled", which raise where it cannot. See `Executor`.
        batched_blocks: Run equal blocks that are in flight together as one batched step, within
            rounding of the others; mode "pipelined" only. See `Executor`.
        autocast: torch.bfloat16 or torch.float16 for blocks that run under `torch.autocast`;
            outputs cross borders in the dtype that gives. Losses are not scaled.

    Raises:
        ValueError: The model is not wrapped or not ready, its rule needs gradients of later
            blocks, or an option is out of its range.
        TypeError: The model is no `nn.Sequential`, or is cut inside a module that is none.
    """
    if autocast not in (None, torch.bfloat16, torch.float16):
        raise ValueError(
            f"autocast: expected torch.bfloat16, torch.float16 or None, got {autocast!r}"
        )
    blocks = wrapped_blocks(model, autocast)
    return Executor(
        blocks,
        optimizer_factory,
        mode=mode,
        depth=depth,
        micro_batches=micro_batches,
        slots=slots,
        threads=threads,
        seed=seed,
        local_step=local_step,
        batched_blocks=batched_blocks,
        feedback=feedback_path(blocks[0].handle),
    )
