"""Every function, family, dtype, message and size against its peers."""

from __future__ import annotations

from collections.abc import Callable

import torch

from bll.bench.cases import Case
from bll.bench.measure import Bench, measure


def test_kernel(kernel_case: Case, bench: Bench, file_entry: Callable[..., None]) -> None:
    """Accuracy first; then times in turn with the peers, and the limits."""
    entry = measure(kernel_case, bench)
    inputs = kernel_case.make(torch.Generator(bench.device).manual_seed(0))
    file_entry(entry, bench.timer.prepare([lambda: kernel_case.ours(inputs)]).sample)
