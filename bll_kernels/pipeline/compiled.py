"""A part of a local step's program compiled by TorchInductor.

Kernels of `bll_kernels` stay what they are; what stands between them is fused. Nothing is guarded
when the result is called: a program is kept for one shape and one state of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from bll_kernels.pipeline.capture import NotTraceable

#: A part with fewer operations than this gains nothing.
_WORTHWHILE: Final = 2
# Random numbers are torch's own, so that they depend on block and micro-batch as everywhere.
_OPTIONS: Final[dict[str, Any]] = {"fallback_random": True}


def compiled_part(module: fx.GraphModule, held: Sequence[Tensor]) -> Callable[..., Any]:
    """A part that is compiled for the inputs of its first call, and serves such inputs only.

    Not before that call: the strides of what an earlier compiled part makes are known then.

    Args:
        module: Takes what it holds, then its inputs. It returns (tensor, tuple of tensors), or a
            list of tensors or None.
        held: Parameters, buffers and constants, given at every call.

    Returns:
        A function of the inputs. Its first call raises NotTraceable where Inductor cannot compile
        the part; the message says why.
    """
    operations = [
        node for node in module.graph.nodes if node.op in ("call_function", "call_method")
    ]
    if len(operations) < _WORTHWHILE:
        return lambda *inputs: module(*held, *inputs)
    return _CompiledPart(module, held)


class _CompiledPart:
    def __init__(self, module: fx.GraphModule, held: Sequence[Tensor]) -> None:
        self.module = module
        self.held = held
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        output = next(node for node in module.graph.nodes if node.op == "output")
        results = output.args[0]
        self.is_list = isinstance(results, list)
        leaves = list(results) if self.is_list else [results[0], *tree_leaves(results[1])]
        # Results first, then what the part was given: only the former are asked of Inductor.
        made = list(dict.fromkeys(x for x in leaves if x is not None and x not in placeholders))
        known = [*made, *placeholders]
        self.picks = [None if leaf is None else known.index(leaf) for leaf in leaves]
        output.args = (tuple(made),)
        module.recompile()
        self.run: Callable[..., Sequence[Tensor]] | None = None

    def __call__(self, *inputs: Tensor) -> Any:
        if self.run is None:
            self.run = _compile(self.module, [*self.held, *inputs])
        known = [*self.run(*self.held, *inputs), *self.held, *inputs]
        found = [None if pick is None else known[pick] for pick in self.picks]
        return found if self.is_list else (found[0], tuple(found[1:]))


def _compile(module: fx.GraphModule, examples: list[Any]) -> Callable[..., Sequence[Tensor]]:
    try:
        with torch.no_grad():
            run: Callable[..., Sequence[Tensor]]
            run = torch._inductor.compile(module, examples, options=_OPTIONS)
    except Exception as error:
        # Of Inductor, of a C++ compiler that is not there, of Triton.
        lines = str(error).strip().splitlines() or [""]
        raise NotTraceable(
            f"Inductor does not compile it: {type(error).__name__}: {lines[0]}"
        ) from error
    return run
