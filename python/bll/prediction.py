"""What a wrapped model predicts, where its rule says that more than the last block has a say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.hooks import RemovableHandle

from bll.features import latents, select_logits
from bll.feedback import Message
from bll.handle import LocalLearning
from bll.hooks import wrapped_handle


def predict(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """Return class scores as the model's rule predicts.

    For most rules these are the model's logits, those of the plain forward pass. For a rule whose
    blocks all vote (`Rule.votes`) they are log-probabilities: of the mean, over all blocks, of the
    softmax of the block's scores.

    Args:
        model: A wrapped model in evaluation mode; with known shapes, if its blocks vote.
        *args: Its positional inputs.
        **kwargs: Its keyword inputs, without labels.

    Returns:
        [batch, C], or [batch, T, C] of a model with logits per token.

    Raises:
        ValueError: The model is not wrapped, not in evaluation mode or not ready; or the features
            of a block have another number of rows than the logits.
    """
    handle = wrapped_handle(model)
    if handle is None:
        raise ValueError(f"model: expected a wrapped model, got a plain {type(model).__name__}")
    if model.training:
        raise ValueError("model: expected evaluation mode, got training mode; call model.eval()")
    if not handle.rule.votes:
        return select_logits(model(*args, **kwargs))
    if not handle.ready:
        raise ValueError(
            "model: its blocks are not known yet; give bll.wrap an example, or run one forward pass"
        )
    outputs: dict[int, Any] = {}
    hooks = [
        model.get_submodule(block.cut).register_forward_hook(
            _Keep(outputs, index, copies=block.hands_on_copy)
        )
        for index, block in enumerate(handle.blocks)
        if block.cut is not None
    ]
    try:
        logits = select_logits(model(*args, **kwargs))
    finally:
        _remove(hooks)
    return _mean_vote(handle, outputs, logits)


class _Keep:
    """Forward hook that keeps what a block returned."""

    def __init__(self, outputs: dict[int, Any], index: int, *, copies: bool) -> None:
        self.outputs = outputs
        self.index = index
        self.copies = copies

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Keep the output, which stays as it is."""
        copied = tree_map_only(Tensor, Tensor.clone, output) if self.copies else output
        self.outputs[self.index] = copied


def _remove(hooks: list[RemovableHandle]) -> None:
    for hook in hooks:
        hook.remove()


def _mean_vote(handle: LocalLearning, outputs: dict[int, Any], logits: Tensor) -> Tensor:
    wide = logits if logits.dtype == torch.float64 else logits.float()
    votes = [wide.log_softmax(-1)]
    # Labels of no meaning: they say only which positions are rows of their own.
    labels = torch.zeros(logits.shape[:-1], dtype=torch.int64, device=logits.device)
    for index, message in enumerate(handle.messages):
        assert isinstance(message, Message)
        block = handle.blocks[index]
        assert block.feature is not None
        feature = handle.tokens.rows(latents(outputs[index], block.feature), labels).feature
        if len(feature) != labels.numel():
            raise ValueError(
                f"tokens: block {block.name!r} has {len(feature)} rows beside logits for "
                f"{labels.numel()}; a vote needs as many"
            )
        scores = handle.rule.scores(feature, message, block.feature.pool)
        votes.append(scores.to(wide).log_softmax(-1).view_as(wide))
    return torch.logsumexp(torch.stack(votes), 0) - torch.log(wide.new_tensor(len(votes)))
