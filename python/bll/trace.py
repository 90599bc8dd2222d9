"""One recorded forward pass of a copy of the model: what ran in which block."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode

from bll.cutting import EarlierTensorsCut
from bll.hooks import remove_hooks
from bll.meta import meta_copy, prepare_for_trace, tensors_to_meta
from bll.step import map_tensors

ResultT = TypeVar("ResultT")


@dataclass
class Call:
    """One call of a module without children: its name, block, inputs and outputs."""

    name: str
    block: int
    inputs: list[Tensor]
    outputs: list[Tensor]

    @property
    def output_bytes(self) -> int:
        """Size of what the call returned."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.outputs)


@dataclass
class FlopRecord:
    """Floating-point operations of a forward pass, as torch counts them (2 per multiply-add).

    Attributes:
        by_block: Of every block, in order.
        by_module: Module name -> of all its calls, those inside it included.
    """

    by_block: list[int] = field(default_factory=list)
    by_module: dict[str, int] = field(default_factory=dict)

    def end_block(self, total: int) -> None:
        """Take what was counted up to here."""
        self.by_block.append(total - sum(self.by_block))


@dataclass
class Trace:
    """What a forward pass did.

    Attributes:
        model: The copy that ran.
        cuts: Names of the modules whose call ended a block, in the order they ended it.
        block_outputs: What each block returned, before any detach; the model's output last.
        handed_on: What each cut gave to the next block.
        calls: Calls of modules without children, in order.
        replayed: Cuts called again after the pass, by checkpointing that recomputes them.
        flops: Floating-point operations of the pass: in all, up to the end of every block, and of
            each module.
        finished: Whether the forward pass is over.
    """

    model: nn.Module
    cuts: list[str] = field(default_factory=list)
    block_outputs: list[Any] = field(default_factory=list)
    handed_on: list[Any] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    replayed: list[str] = field(default_factory=list)
    flops: FlopRecord = field(default_factory=lambda: FlopRecord())
    finished: bool = False

    def written_in_place(self, block: int) -> bool:
        """Whether a later block wrote into what this block handed on."""
        tensors = [leaf for leaf in tree_leaves(self.handed_on[block]) if isinstance(leaf, Tensor)]
        return any(tensor._version > 0 for tensor in tensors)


def run_traced(
    model: nn.Module,
    cuts: Sequence[str],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    *,
    detach: bool,
    cut_tensors: bool = False,
    analyse: Callable[[Trace], ResultT],
) -> ResultT:
    """Run a copy of the model, cut at the named modules, and analyse the record.

    The copy lives on the meta device: no weights are copied and nothing is computed. A model that
    cannot run there (its control flow reads values, or it makes tensors on a fixed device) runs as
    a full copy on the real inputs, with the random state restored afterwards; the check is the
    same. The model itself is never touched.

    Args:
        model: The model; our hooks are removed from the copy.
        cuts: Names of modules after which a block ends.
        args: Positional inputs of the model.
        kwargs: Keyword inputs of the model.
        detach: Whether a cut detaches what it hands on.
        cut_tensors: Whether what goes round a cut is detached too.
        analyse: Turns the record into the result.

    Raises:
        Exception: Whatever the model raises on these inputs.
    """
    # A checkpointed region is recomputed to its end, so that a cut inside it shows itself.
    recompute_all = set_checkpoint_early_stop(False)
    with torch.inference_mode(False), torch.enable_grad(), recompute_all:
        try:
            with torch.device("meta"):
                inputs = tensors_to_meta((args, dict(kwargs)))
                return analyse(_record(meta_copy(model), cuts, inputs, detach, cut_tensors))
        except (RuntimeError, TypeError):
            with torch.random.fork_rng():
                full = copy.deepcopy(model)
                return analyse(_record(full, cuts, (args, dict(kwargs)), detach, cut_tensors))


def _record(
    model: nn.Module,
    cuts: Sequence[str],
    inputs: tuple[tuple[Any, ...], dict[str, Any]],
    detach: bool,
    cut_tensors: bool,
) -> Trace:
    remove_hooks(model)
    prepare_for_trace(model)
    trace = Trace(model)
    counter = FlopCounterMode(display=False)
    earlier = EarlierTensorsCut() if cut_tensors else None
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            module.register_forward_hook(_CallRecorder(trace, name), with_kwargs=True)
        if name in cuts:
            module.register_forward_hook(_CutRecorder(trace, counter, name, detach, earlier))
    args, kwargs = tree_map_only(Tensor, _requiring_grad, inputs)
    with counter, earlier or nullcontext():
        trace.block_outputs.append(model(*args, **kwargs))
    trace.finished = True
    trace.flops.end_block(counter.get_total_flops())
    trace.flops.by_module = _module_flops(counter, type(model).__name__)
    return trace


def _module_flops(counter: FlopCounterMode, root: str) -> dict[str, int]:
    counts = {name: sum(count.values()) for name, count in counter.get_flop_counts().items()}
    return {name.removeprefix(root + "."): count for name, count in counts.items()}


def _requiring_grad(tensor: Tensor) -> Tensor:
    # Reentrant checkpointing drops gradients without a word where no input requires one; this way
    # it raises. The copy is no leaf, so the model may write into it.
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor.clone()
    return tensor.detach().requires_grad_().clone()


class _CallRecorder:
    def __init__(self, trace: Trace, name: str) -> None:
        self.trace = trace
        self.name = name

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self.trace.finished:
            return
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        self.trace.calls.append(Call(self.name, len(self.trace.cuts), inputs, outputs))


class _CutRecorder:
    def __init__(
        self,
        trace: Trace,
        counter: FlopCounterMode,
        name: str,
        detach: bool,
        earlier: EarlierTensorsCut | None,
    ) -> None:
        self.trace = trace
        self.counter = counter
        self.name = name
        self.detach = detach
        self.earlier = earlier

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if self.earlier is not None:
            self.earlier.begin_block()
        # A copy is handed on, so that a later write in place neither hides in the block's own
        # graph nor breaks its gradient; the copy's version counter tells of the write.
        handed = map_tensors(self._hand_on, output)
        if self.trace.finished:
            self.trace.replayed.append(self.name)
            return handed
        self.trace.cuts.append(self.name)
        self.trace.flops.end_block(self.counter.get_total_flops())
        self.trace.block_outputs.append(output)
        self.trace.handed_on.append(handed)
        return handed

    def _hand_on(self, tensor: Tensor) -> Tensor:
        return _requiring_grad(tensor) if self.detach else tensor.clone()
