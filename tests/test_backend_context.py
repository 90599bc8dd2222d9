"""What surrounds the Python code of an op: the device of its tensors, and no autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from bll_kernels.backends.context import kernel_context


def test_the_device_of_the_tensors_is_current(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[int | None] = []

    @contextmanager
    def device(given: torch.device) -> Iterator[None]:
        entered.append(given.index)
        yield
        entered.append(None)

    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    for name, want in (("cuda:1", [1]), ("cuda:0", []), ("cpu", [])):
        entered.clear()
        with kernel_context(torch.device(name)):
            assert entered == want
        assert entered == [*want, *[None] * len(want)]


@pytest.mark.parametrize("around", [True, False])
def test_autocast_is_off_inside_and_back_after(around: bool) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=around):
        with kernel_context(torch.device("cpu")):
            assert not torch.is_autocast_enabled("cpu")
        assert torch.is_autocast_enabled("cpu") is around
