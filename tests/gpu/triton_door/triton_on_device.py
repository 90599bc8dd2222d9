"""A pytest plugin: the Triton backend serves CPU tensors, on the GPU."""

from __future__ import annotations

from on_device import serve

from bll_kernels.backends import selection
from bll_kernels.ops import _LIBRARIES

serve(_LIBRARIES["triton"], "triton")
selection.DEVICES["triton"] = frozenset({"cpu", "cuda"})
