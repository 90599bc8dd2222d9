"""`wrap` and `unwrap`: make a model learn block by block, in place, and give it back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bll.blocks import pending_blocks
from bll.compiling import remove_compiled
from bll.features import Pool
from bll.handle import LocalLearning
from bll.hooks import LABEL_NAMES, install_hooks, remove_hooks, wrapped_handle
from bll.plan import Inputs, plan_blocks
from bll.rules import Rule, get_rule
from bll.tokens import IGNORE_INDEX, TokenOptions
from bll_kernels.families import Family

ModelT = TypeVar("ModelT", bound=nn.Module)


def wrap(
    model: ModelT,
    blocks: Sequence[str] | int | None = None,
    *,
    rule: str | Rule = "bll",
    num_classes: int,
    family: str | Family | None = None,
    feedback: str | None = None,
    pool: Pool | None = None,
    tilt: float | None = None,
    label_smoothing: float = 0.0,
    seed: int = 0,
    example: Any = None,
    balance: str | None = None,
    cut_tensors: bool = False,
    tokens: str = "pooled",
    ignore_index: int | None = IGNORE_INDEX,
    shift_labels: bool | None = None,
    verbose: bool = False,
) -> ModelT:
    """Cut a model into blocks that each learn from a loss of their own. In place.

    The wrapped model is called with labels: `out = model(x, y=labels)` gives `out.loss` (the sum
    of the block losses), `out.logits` and `out.block_losses`; one `out.loss.backward()` trains
    every block, and no gradient crosses a border. `model.eval()` without labels is the plain
    forward pass, bit for bit. What the rule learns stands under `bll.` in the model's parameters;
    every other name is unchanged. Wrap before DDP, FSDP or torch.compile, and before the optimiser
    is made.

    With `example`, shapes are found and locality is checked here, on a copy without data. Without
    it both happen at the first forward pass with labels: until then the tables have no shape (an
    optimiser may hold them, as with torch's lazy modules; `state_dict` and `param_groups` raise),
    and a model that fails the check is unwrapped before the error is raised.

    Args:
        model: Any module with integer class labels and logits [batch, num_classes] (or
            [batch, T, num_classes] with labels per token) as its output: a tensor, the `logits` of
            an output object, or the first tensor of a tuple.
        blocks: Names of the last module of each block in execution order, where what follows the
            last name is one more block; or the number of blocks, see `balance`; or None: one block
            per module in timm's `feature_info`, per weighted child of an `nn.Sequential`, per
            stage of three or more containers side by side, or per module of the longest container.
            With None and an `example`, blocks between which a gradient would leak are joined, and
            a stem alone joins the block after it.
        rule: Name of a rule (`bll.rule_names()`) or a `Rule`.
        num_classes: Number of classes.
        family: Exponential family of the messages; None is the rule's default.
        feedback: "learned" or "fixed"; None is the rule's default.
        pool: Pooling of feature maps, (kind, grid); None is the rule's default.
        tilt: Power of the message; None is the rule's default.
        label_smoothing: Of the last block's cross-entropy.
        seed: Seed of the message tables; the global random state is not touched.
        example: Sample inputs: a tensor, a tuple of positional or a dict of keyword inputs.
        balance: What a count of blocks balances: "bytes" of activations, "flops", "time" (measured
            forward seconds of a copy on the example) or "parameters"; None: bytes with an
            `example`, else parameters.
        cut_tensors: Also detach what goes round a border (a skip connection), wherever a later
            block takes it in. Costs Python time per operation of the forward pass.
        tokens: For [B, T, D] features and one label per sample: "pooled" averages over T first,
            "position" gives every position the message. Labels [B, T] are always per position.
        ignore_index: Label of the positions that do not count; None: all count.
        shift_labels: Whether position t is to predict label t + 1, as where the labels are the
            input ids. None: no, but a causal language model of transformers needs an answer.
        verbose: Print the table of blocks once it is known to be right.

    Returns:
        The same object.

    Raises:
        TypeError: An argument of the wrong type.
        ValueError: An argument out of range; a model that is already wrapped, compiled, or inside
            DataParallel or DistributedDataParallel.
        LocalityError: A gradient would cross a border, a cut is not reached exactly once, or a
            block is empty. Whenever an error is raised, the model is as it was.
    """
    _refuse_unsuitable(model)
    options = {"family": family, "feedback": feedback, "pool": pool, "tilt": tilt}
    chosen = _resolve_rule(rule, options)
    _check_numbers(num_classes, label_smoothing, seed)
    if example is None and chosen.needs_example:
        raise ValueError(f"example: rule {chosen.name!r} makes its networks from it; got None")
    options_of_tokens = _token_options(model, tokens, ignore_index, shift_labels)
    inputs = None if example is None else _example_inputs(example)
    if verbose and inputs is None:
        raise ValueError("verbose: the table of blocks needs an example")
    plan = plan_blocks(model, blocks, chosen, inputs, balance=balance, cut_tensors=cut_tensors)
    first = next(model.parameters(), None)
    handle = LocalLearning(
        chosen,
        pending_blocks(plan.cuts),
        num_classes=num_classes,
        label_smoothing=label_smoothing,
        tokens=options_of_tokens,
        cut_tensors=cut_tensors,
        seed=seed,
        device=None if first is None else first.device,
    )
    handle.backward_path = chosen.make_backward(model, seed)
    if plan.blocks is not None:
        handle.complete(plan.blocks, model)
    install_hooks(model, handle, plan.cuts)
    if verbose:
        print(handle.summary())
    return model


def unwrap(model: ModelT) -> ModelT:
    """Give back the plain model: the same object, with its names and trained values, no hooks.

    Raises:
        ValueError: The model is not wrapped.
    """
    if wrapped_handle(model) is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    remove_compiled(model)
    remove_hooks(model)
    return model


def _refuse_unsuitable(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    if any(isinstance(module, LocalLearning) for module in model.modules()):
        raise ValueError("model: already wrapped, or holds a wrapped model; call bll.unwrap first")
    if hasattr(model, "bll"):
        raise ValueError("model: already has an attribute 'bll', the name its local state needs")
    if isinstance(model, nn.DataParallel):
        raise ValueError(
            "model: DataParallel replicas lose their local state; wrap the module inside and use "
            "DistributedDataParallel"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError("model: wrap the module first, then make it DistributedDataParallel")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: a scripted module takes no hooks; wrap the Python module")
    for name, module in model.named_modules():
        compiled = getattr(module, "_compiled_call_impl", None) is not None
        # torch.compile's wrapper is known by its child: asking for its class imports the compiler.
        if compiled or "_orig_mod" in module._modules:
            raise ValueError(
                f"model: {name or 'the model'!r} is compiled, and hooks added now would be "
                "ignored; wrap first, then compile"
            )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(f"model: {name!r} has no shape yet; run the model once, then wrap")


def _resolve_rule(rule: str | Rule, options: dict[str, Any]) -> Rule:
    if isinstance(rule, str):
        return get_rule(rule, **options)
    if not isinstance(rule, Rule):
        raise TypeError(f"rule: expected a name or a Rule, got {type(rule).__name__}")
    for name, value in options.items():
        if value is not None:
            raise ValueError(f"{name}: give it to the rule object, or give the rule by name")
    return rule


def _check_numbers(num_classes: int, label_smoothing: float, seed: int) -> None:
    if isinstance(num_classes, bool) or not isinstance(num_classes, int):
        raise TypeError(f"num_classes: expected an int, got {type(num_classes).__name__}")
    if num_classes < 1:
        raise ValueError(f"num_classes: expected at least 1, got {num_classes}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"label_smoothing: expected a number in [0, 1], got {label_smoothing}")
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed: expected an int, got {type(seed).__name__}")
    if seed < 0:
        raise ValueError(f"seed: expected 0 or more, got {seed}")


def _example_inputs(example: Any) -> Inputs:
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), {name: value for name, value in example.items() if name not in LABEL_NAMES}
    if isinstance(example, (tuple, list)):
        return tuple(example), {}
    raise TypeError(
        "example: expected a tensor, a tuple of positional inputs or a dict of keyword inputs, "
        f"got {type(example).__name__}"
    )


def _token_options(
    model: nn.Module, tokens: str, ignore_index: int | None, shift_labels: bool | None
) -> TokenOptions:
    if tokens not in ("pooled", "position"):
        raise ValueError(f"tokens: expected 'pooled' or 'position', got {tokens!r}")
    if ignore_index is not None and not isinstance(ignore_index, int):
        raise TypeError(f"ignore_index: expected an int or None, got {ignore_index!r}")
    if shift_labels is None and getattr(model, "loss_type", None) == "ForCausalLM":
        raise ValueError(
            f"shift_labels: {type(model).__name__} predicts the next token; expected True where "
            "labels are the input ids (as transformers' collators make them), or False where "
            "they are shifted already"
        )
    return TokenOptions(tokens == "position", ignore_index, bool(shift_labels))
