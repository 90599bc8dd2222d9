"""Feedback alignment: backpropagation through fixed random weights. Rule `fa`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from bll.backward_path import BackwardPath
from bll.rules.bp import BpRule


@dataclass(frozen=True)
class FaRule(BpRule):
    """The network of `bp` whose backward pass multiplies by fixed random B instead of W.

    delta_{l-1} = (delta_l B_l) * f'(z_{l-1}) with B_l drawn once, in every linear layer and
    convolution; weights still get delta_l^T h_{l-1}. A baseline, not a local rule: every delta
    comes from the layer after it. Nothing is detached.

    Lillicrap, Cownden, Tweed, Akerman, "Random synaptic feedback weights support error
    backpropagation for deep learning", 2016.
    """

    name: ClassVar[str] = "fa"
    source: ClassVar[str] = "Lillicrap et al. 2016"

    def make_backward(self, model: nn.Module, seed: int) -> BackwardPath:
        """Return the random weights of every linear layer and convolution."""
        return BackwardPath(model, seed)
