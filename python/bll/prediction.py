"""What a wrapped model predicts, where its rule says that more than the last block has a say."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from bll.features import latents, select_logits
from bll.feedback import Message
from bll.handle import LocalLearning
from bll.hooks import wrapped_handle
from bll.step import map_tensors


def predict(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Return class scores as the model's rule predicts.

    For most rules these are the model's logits, those of the plain forward pass. For a rule whose
    blocks all vote (`Rule.votes`) they are log-probabilities: of the mean, over all blocks, of the
    softmax of the block's scores. For a contrastive rule (`Rule.contrasts`) they are how good the
    blocks find an input that shows the class: as many forward passes as classes.

    Args:
        model: A wrapped model in evaluation mode; with known shapes, if more than its output
            predicts.
        *args: Its positional inputs.
        **kwargs: Its keyword inputs, without labels.

    Returns:
        [batch, C], or [batch, T, C] of a model with logits per token.

    Raises:
        ValueError: The model is not wrapped, not in evaluation mode or not ready; the features
            of a block have another number of rows than the logits; or a contrastive rule gets
            other inputs than one tensor.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")
    if not (handle.rule.votes or handle.rule.contrasts):
        return select_logits(model(*args, **kwargs))
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    if handle.rule.votes:
        outputs, output = _run(model, handle, *args, **kwargs)
        return _mean_vote(handle, outputs, select_logits(output))
    if len(args) != 1 or kwargs or not isinstance(args[0], Tensor):
        raise ValueError(f"inputs: rule {handle.rule.name!r} predicts from one tensor, by position")
    return _goodness(model, handle, args[0])


def _run(
    model: nn.Module, handle: LocalLearning, *args: Any, **kwargs: Any
) -> tuple[dict[int, Any], Any]:
    """The plain forward pass: what the blocks before the last returned, and the model's output."""
    outputs: dict[int, Any] = {}
    hooks = [
        model.get_submodule(block.cut).register_forward_hook(
            _Keep(outputs, index, copies=block.hands_on_copy)
        )
        for index, block in enumerate(handle.blocks)
        if block.cut is not None
    ]
    try:
        output = model(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, output


def _goodness(model: nn.Module, handle: LocalLearning, inputs: Tensor) -> Tensor:
    """For every class, how good the blocks find the inputs that show it, [B, C]."""
    found = []
    for label in range(handle.num_classes):
        labels = torch.full((len(inputs),), label, device=inputs.device)
        outputs, _ = _run(model, handle, handle.rule.show(inputs, labels, handle.num_classes))
        # The first block sees the label itself; the others see what it made of it.
        later = [index for index in outputs if index > 0] or list(outputs)
        found.append(sum(_scores(handle, outputs, index, labels) for index in later))
    return torch.cat(cast(list[Tensor], found), 1)


def _scores(handle: LocalLearning, outputs: dict[int, Any], index: int, labels: Tensor) -> Tensor:
    """One block's scores, a row per label."""
    block = handle.blocks[index]
    assert block.feature is not None
    message = handle.messages[index] if len(handle.messages) else None
    assert message is None or isinstance(message, Message)
    feature = handle.tokens.rows(latents(outputs[index], block.feature), labels).feature
    if len(feature) != labels.numel():
        raise ValueError(
            f"tokens: block {block.name!r} has {len(feature)} rows beside {labels.numel()} labels; "
            "a prediction by blocks needs as many"
        )
    return handle.rule.scores(feature, message, block.feature.pool)


class _Keep:
    """Forward hook that keeps what a block returned."""

    def __init__(self, outputs: dict[int, Any], index: int, *, copies: bool) -> None:
        self.outputs = outputs
        self.index = index
        self.copies = copies

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the output, which stays as it is."""
        copied = map_tensors(Tensor.clone, output) if self.copies else output
        self.outputs[self.index] = copied


def _mean_vote(handle: LocalLearning, outputs: dict[int, Any], logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    votes = [wide.log_softmax(-1)]
    # Labels of no meaning: they say only which positions are rows of their own.
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    for index in outputs:
        scores = _scores(handle, outputs, index, labels)
        votes.append(scores.to(wide).log_softmax(-1).view_as(wide))
    return torch.logsumexp(torch.stack(votes), 0) - torch.log(wide.new_tensor(len(votes)))
