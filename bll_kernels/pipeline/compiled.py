"""A part of a local step's program compiled by TorchInductor.

Kernels of `bll_kernels` stay what they are; what stands between them is fused. Nothing is guarded
when the result is called: a program is kept for one shape and one state of its block.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves

from bll_kernels.pipeline.capture import NotTraceable

#: A part with fewer operations than this gains nothing.
_WORTHWHILE: Final = 2
# Random numbers are torch's own, so that they depend on block and micro-batch as everywhere.
_OPTIONS: Final[dict[str, Any]] = {"fallback_random": True, "size_asserts": False}


def is_worthwhile(body: Sequence[fx.Node]) -> bool:
    """Whether a part has enough operations for Inductor to gain anything."""
    return sum(node.target is not operator.getitem for node in body) >= _WORTHWHILE


class CompiledPart:
    """A part that is compiled for the inputs of its first call, and serves such inputs only.

    Not before that call: the strides of what an earlier compiled part makes are known then.

    Args:
        module: Takes what it holds, then its inputs. It returns (tensor, tuple of tensors), or a
            list of tensors or None.
        held: Parameters, buffers and constants, given at every call.
    """

    def __init__(self, module: fx.GraphModule, held: Sequence[Tensor]) -> None:
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        output = next(node for node in module.graph.nodes if node.op == "output")
        results = output.args[0]
        self.is_list = isinstance(results, list)
        leaves = list(results) if self.is_list else [results[0], *tree_leaves(results[1])]
        # Results first, then what the part was given: only the former are asked of Inductor.
        made = list(dict.fromkeys(x for x in leaves if x is not None and x not in placeholders))
        known = [*made, *placeholders, None]
        self.picks = [known.index(leaf) for leaf in leaves]
        output.args = (tuple(made),)
        module.recompile()
        self.held = list(held)
        self.function, self.distinct, _ = without_aliases(module, self.held)
        self.run: Callable[[list[Any]], Sequence[Tensor]] | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        """The part's results.

        Raises:
            NotTraceable: At the first call; Inductor cannot compile the part.
        """
        run = self.run
        if run is None:
            run = self.run = compile_graph(self.function, [*self.distinct, *inputs])
        known = [*run([*self.distinct, *inputs]), *self.held, *inputs, None]
        found = [known[pick] for pick in self.picks]
        return found if self.is_list else (found[0], tuple(found[1:]))


def without_aliases(
    function: Callable[..., Any], held: Sequence[Tensor]
) -> tuple[Callable[..., Any], list[Tensor], list[int]]:
    """A function as one of tensors that share no memory.

    A compiler takes what it is given for different memory. Where the function reads through one
    tensor what it writes to through another, one is made a view of the other in the graph.

    Args:
        function: Of these tensors, and others behind them.
        held: Any tensors.

    Returns:
        The function of the tensors that are left, and others behind them; these tensors; and for
        each of `held` the place of the one whose memory it has.

    Raises:
        NotTraceable: Tensors share memory that none of them is all of.
    """
    largest: dict[int, Tensor] = {}
    for tensor in held:
        at = tensor.untyped_storage().data_ptr()
        if at not in largest or tensor.numel() > largest[at].numel():
            largest[at] = tensor
    distinct = list(largest.values())
    places = [list(largest).index(tensor.untyped_storage().data_ptr()) for tensor in held]
    views: list[tuple[Any, ...] | None] = []
    for tensor, place in zip(held, places, strict=True):
        base = distinct[place]
        view = (tensor.shape, tensor.stride(), tensor.storage_offset())
        if view == (base.shape, base.stride(), base.storage_offset()):
            views.append(None)
            continue
        if base.numel() * base.element_size() != base.untyped_storage().nbytes():
            raise NotTraceable("tensors it holds are parts of one memory")
        views.append(view)

    def of_distinct(*given: Any) -> Any:
        values = [
            given[place] if view is None else given[place].as_strided(*view)
            for place, view in zip(places, views, strict=True)
        ]
        return function(*values, *given[len(distinct) :])

    return of_distinct, distinct, places


def compile_graph(
    function: Callable[..., Any], examples: list[Any]
) -> Callable[[list[Any]], Sequence[Tensor]]:
    """A function of a list of inputs, which it empties.

    Args:
        function: Of tensors, to a tuple of tensors; it may write to what it is given.
        examples: What it is compiled for; nothing is run.

    Raises:
        NotTraceable: Inductor cannot compile it; the message says why.

    Inductor's own entry for one graph, behind `torch._inductor.compile`: what that puts around
    every call (AOTAutograd, for gradients that nobody asks for) takes longer than a small part.
    """
    # Importing Inductor takes seconds, which only those who compile should wait for.
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    try:
        with torch.no_grad(), config.patch(_OPTIONS):
            # Writes to buffers become copies at the end, and operations those Inductor knows.
            trace = make_fx(functionalize(function), select_decomp_table(), tracing_mode="fake")
            graph = trace(*examples)
            # Strides of what is handed on stay; inside, Inductor may lay images out otherwise.
            output = next(node for node in graph.graph.nodes if node.op == "output")
            output.meta["user_visible_output_idxs"] = list(range(len(output.args[0])))
            run: Callable[[list[Any]], Sequence[Tensor]]
            run = compile_fx_inner(graph, examples, is_inference=True)
    except Exception as error:
        # Of Inductor, of a C++ compiler that is not there, of Triton.
        lines = str(error).strip().splitlines() or [""]
        raise NotTraceable(
            f"Inductor does not compile it: {type(error).__name__}: {lines[0]}"
        ) from error
    return run
