"""What wrapping does to one model: a record of the outcome, every promise checked."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

import bll

NUM_CLASSES = 7
# Parameters up to which a model also runs with weights.
_VALUES_LIMIT = 6_000_000


@dataclass(frozen=True)
class Candidate:
    """A model to wrap.

    Attributes:
        source: "timm", "transformers" or "bll".
        family: What it stands for.
        name: Its name there.
        make: Returns the model; under `torch.device("meta")` it has no weights.
        inputs: Keyword or positional inputs of a batch of two, on the CPU.
        labels: Class labels of the batch.
        device: "meta" to ask without weights, "cpu" for small models that read values.
        options: Of `bll.wrap`.
    """

    source: str
    family: str
    name: str
    make: Callable[[], nn.Module]
    inputs: Callable[[], Any]
    labels: Callable[[], Tensor]
    device: str = "meta"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a model.

    Attributes:
        source: As in the candidate.
        family: As in the candidate.
        name: As in the candidate.
        parameters: Numbers in its parameters.
        blocks: Blocks it was cut into; 0 if refused.
        apart: Whether the executor may run the blocks apart.
        values: Whether it also ran with weights.
        refusal: Why it was not wrapped; empty if it was.
        warned: What `wrap` warned of.
        seconds: Of wrapping, the check included.
    """

    source: str
    family: str
    name: str
    parameters: int
    blocks: int
    apart: bool
    values: bool
    refusal: str
    warned: str
    seconds: float


class _Operations(TorchDispatchMode):
    """Records every operation with the shapes it takes and gives."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        shapes = [tuple(t.shape) for t in tree_leaves((args, kwargs, result)) if torch.is_tensor(t)]
        self.seen.append((str(func), shapes))
        return result


def check(candidate: Candidate) -> Outcome:
    """Wrap a model and check what is promised; refusals are outcomes, broken promises raise.

    On the candidate's device: no gradient of a block's loss leaves the block (asked of
    autograd on the wrapped model), evaluation runs the same operations as before, the names in
    `state_dict` are the old ones and those under `bll.`, and `unwrap` gives the same tensors back.
    With weights, for models that are not large: evaluation and `unwrap` are bitwise.
    """
    with torch.device(candidate.device):
        model = candidate.make()
    args, kwargs = _call_inputs(candidate, candidate.device)
    size = sum(parameter.numel() for parameter in model.parameters())
    before = _state(model)
    plain = _operations(model, args, kwargs)
    started = time.perf_counter()
    refusal, caught = _wrap(model, candidate, args, kwargs)
    seconds = time.perf_counter() - started
    known = (candidate.source, candidate.family, candidate.name, size)
    if refusal:
        _require(_state(model) == before, "a refused model changed")
        return Outcome(*known, 0, False, False, refusal, "", seconds)
    _require(_operations(model, args, kwargs) == plain, "evaluation runs other operations")
    own = [name for name in _state(model) if not name.startswith("bll.")]
    _require(own == list(before), "names in state_dict changed")
    _check_locality(model, args, kwargs, candidate.labels().to(candidate.device))
    blocks, apart = len(model.bll.blocks), model.bll.why_in_place is None
    bll.unwrap(model)
    _require(_state(model) == before, "unwrap left something behind")
    values = size <= _VALUES_LIMIT
    if values:
        _check_values(candidate)
    return Outcome(*known, blocks, apart, values, "", caught, seconds)


def _require(condition: bool, failure: str) -> None:
    if not condition:
        raise AssertionError(failure)


def _call_inputs(candidate: Candidate, device: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    inputs = tree_map_only(Tensor, lambda tensor: tensor.to(device), candidate.inputs())
    return ((), inputs) if isinstance(inputs, dict) else (tuple(inputs), {})


def _state(model: nn.Module) -> dict[str, int]:
    return {name: id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}


def _operations(model: nn.Module, args: Any, kwargs: Any) -> list[Any]:
    with torch.no_grad():
        model.eval()(*args, **kwargs)  # what a first call alone does, such as filling caches
        with _Operations() as record:
            model(*args, **kwargs)
    return record.seen


def _wrap(model: nn.Module, candidate: Candidate, args: Any, kwargs: Any) -> tuple[str, str]:
    options = {"num_classes": NUM_CLASSES, **candidate.options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            bll.wrap(model, example=kwargs or args, **options)
        except ValueError as error:
            return str(error), ""
    shallow = [w for w in caught if issubclass(w.category, bll.ShallowBlockWarning)]
    return "", "; ".join(str(warning.message) for warning in shallow)


def _check_locality(model: nn.Module, args: Any, kwargs: Any, labels: Tensor) -> None:
    losses = model.train()(*args, **kwargs, labels=labels).block_losses
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    for index, block in enumerate(model.bll.blocks):
        gradients = torch.autograd.grad(
            losses[block.name], [p for _, p in named], retain_graph=True, allow_unused=True
        )
        touched = {name for (name, _), g in zip(named, gradients, strict=True) if g is not None}
        message = f"bll.messages.{index}."
        foreign = {name for name in touched - set(block.parameters) if not name.startswith(message)}
        _require(not foreign, f"the loss of {block.name!r} reaches {sorted(foreign)[:3]}")
        _require(bool(touched), f"the loss of {block.name!r} reaches nothing")


def _check_values(candidate: Candidate) -> None:
    torch.manual_seed(0)
    model = candidate.make().eval()
    args, kwargs = _call_inputs(candidate, "cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        plain = _tensors(model(*args, **kwargs))
        bll.wrap(model, example=kwargs or args, **{"num_classes": NUM_CLASSES, **candidate.options})
        wrapped = _tensors(model(*args, **kwargs))
        bll.unwrap(model)
        after = _tensors(model(*args, **kwargs))
    for values in (wrapped, after):
        same = len(values) == len(plain) and all(map(_same_bits, values, plain))
        _require(same, "evaluation has other bits")
    now = model.state_dict()
    same = list(now) == list(before) and all(_same_bits(now[n], before[n]) for n in before)
    _require(same, "unwrap has other bits")


def _same_bits(left: Tensor, right: Tensor) -> bool:
    return torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))


def _tensors(output: Any) -> list[Tensor]:
    tree = dict(output) if hasattr(output, "keys") else output
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
