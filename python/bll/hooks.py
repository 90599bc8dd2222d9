"""The hooks a wrapped model runs with: picklable objects on the instance, never on its class."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

if TYPE_CHECKING:
    from bll.handle import LocalLearning

LABEL_NAMES = ("y", "labels", "target")
# Hugging Face's Trainer tells by it over how many labels of several batches a loss is averaged.
_COUNT_NAME = "num_items_in_batch"
_INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class LabelsHook:
    """Root pre-hook: takes the labels out of the call and opens the step.

    Args:
        handle: The model's local-learning state.
        model: The model, for the signature of its forward.
    """

    def __init__(self, handle: LocalLearning, model: nn.Module) -> None:
        self.handle = handle
        inputs = inspect.signature(model.forward).parameters
        # A model may have an input of its own called `y` or `target`; `labels` is taken even so,
        # since models that know the word compute an end-to-end loss from it.
        self.names = tuple(name for name in LABEL_NAMES if name == "labels" or name not in inputs)
        positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        kinds = [parameter.kind for parameter in inputs.values()]
        variadic = inspect.Parameter.VAR_POSITIONAL in kinds
        self.single_input = not variadic and sum(kind in positional for kind in kinds) == 1

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the model's own inputs."""
        given = {name: kwargs[name] for name in self.names if kwargs.get(name) is not None}
        kwargs = {name: value for name, value in kwargs.items() if name not in self.names}
        if self.single_input and len(args) == 2:
            given["the second position"] = args[1]
            args = args[:1]
        if len(given) > 1:
            raise TypeError(f"labels: given more than once, as {' and '.join(given)}")
        labels = check_labels(next(iter(given.values()))) if given else None
        if labels is None and module.training:
            self._refuse(len(args))
        items = kwargs.pop(_COUNT_NAME, None) if labels is not None else None
        self.handle.begin(module, args, kwargs, labels, items)
        return args, kwargs

    def _refuse(self, positional: int) -> None:
        expected = " or ".join(f"{name}=" for name in self.names)
        if positional > 1 and not self.single_input:
            raise TypeError(
                f"labels: a model with several inputs takes them by keyword, as {expected}; "
                f"got {positional} positional arguments and no labels"
            )
        raise ValueError(
            f"labels: expected {expected} in training mode, got none; "
            "call model.eval() for the plain forward pass"
        )


class CutHook:
    """Forward hook of the module that ends a block: takes the loss, hands the output on."""

    def __init__(self, handle: LocalLearning, index: int) -> None:
        self.handle = handle
        self.index = index

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return what the next block gets; None leaves the output as it is."""
        return self.handle.end_block(self.index, output)


class OutputHook:
    """Root hook: closes the step and returns the losses with the logits."""

    def __init__(self, handle: LocalLearning) -> None:
        self.handle = handle

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Return the output object; None leaves the model's own output."""
        return self.handle.end_step(output)


class LeaveHook:
    """Root hook that runs even if the forward pass raised: leaves what the step had entered."""

    def __init__(self, handle: LocalLearning) -> None:
        self.handle = handle

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Leave; the output stays as it is."""
        self.handle.leave()


def check_labels(labels: Any) -> Tensor:
    """Return integer class labels of shape [batch] or [batch, T] as int64.

    Raises:
        TypeError: Not a tensor.
        ValueError: Not integers, or neither one label per sample nor one per token.
    """
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels: expected a tensor, got {type(labels).__name__}")
    if labels.dtype not in _INTEGER:
        raise ValueError(
            f"labels: expected integer class labels, got dtype {labels.dtype}; "
            "regression, soft and multi-label targets are not supported"
        )
    if labels.dim() not in (1, 2):
        raise ValueError(
            "labels: expected one class per sample, shape [batch], or one per token, shape "
            f"[batch, T]; got shape {list(labels.shape)}"
        )
    return labels.long()


def install_hooks(model: nn.Module, handle: LocalLearning, cuts: tuple[str, ...]) -> None:
    """Put the state into the model as `model.bll` and hook the root and the named modules."""
    root = [model.register_forward_pre_hook(LabelsHook(handle, model), with_kwargs=True)]
    if handle.cut_tensors:
        root.append(model.register_forward_hook(LeaveHook(handle), always_call=True))
    root.append(model.register_forward_hook(OutputHook(handle)))
    handle.root_hooks = root
    handle.cut_hooks = [
        model.get_submodule(name).register_forward_hook(CutHook(handle, index))
        for index, name in enumerate(cuts)
    ]
    if handle.backward_path is not None:
        handle.path_hooks = handle.backward_path.install(model, handle.in_step)
    model.add_module("bll", handle)


def keep_cuts_last(installed: list[RemovableHandle]) -> None:
    """Move the cuts behind hooks registered since, such as FSDP's.

    Those must see the output that the local loss is taken on, before it is detached.
    """
    for handle in installed:
        hooks = handle.hooks_dict_ref()
        if hooks is not None and next(reversed(hooks)) != handle.id:
            hooks.move_to_end(handle.id)


def remove_hooks(model: nn.Module) -> None:
    """Take the hooks and `model.bll` away again; a model without them stays as it is."""
    handle = wrapped_handle(model)
    if handle is None:
        return
    for installed in (*handle.root_hooks, *handle.cut_hooks, *handle.path_hooks):
        installed.remove()
    handle.root_hooks, handle.cut_hooks, handle.path_hooks = [], [], []
    delattr(model, "bll")


def wrapped_handle(model: nn.Module) -> LocalLearning | None:
    """Return the model's local-learning state, or None if it is not wrapped."""
    from bll.handle import LocalLearning

    handle = model._modules.get("bll")
    return handle if isinstance(handle, LocalLearning) else None
