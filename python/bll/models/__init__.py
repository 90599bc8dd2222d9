"""The reference networks of the experiments."""

from __future__ import annotations

from bll.models.network import Network
from bll.models.registry import MODEL_NAMES, build_network

__all__ = ["MODEL_NAMES", "Network", "build_network"]
