"""The reference networks of the experiments."""

from __future__ import annotations

from bll.models.network import Network
from bll.models.registry import MODEL_NAMES, build_network
from bll.models.transformer import gpt, reversal_encoder

__all__ = ["MODEL_NAMES", "Network", "build_network", "gpt", "reversal_encoder"]
