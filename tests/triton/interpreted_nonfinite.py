"""Messages that rule a state out (b = -inf) in the Triton kernels: finite where the float64
reference is finite, infinite where it is infinite."""

from __future__ import annotations

import nonfinite
import oracle
import pytest
import torch

LOSSES = ("reverse_kl", "reverse_kl_full", "evidence")
NATURAL = ("bernoulli", "categorical")


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("family", NATURAL)
def test_class_losses(family: str, normalize: bool) -> None:
    for odd in ({"table": -torch.inf}, {"a": -torch.inf}, {"table": torch.nan}):
        nonfinite.check_class("triton", family, normalize, torch.float32, [odd])


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", NATURAL)
def test_pair_losses(family: str, loss: str, gathered: bool) -> None:
    odds = [{"a": -torch.inf}, {"b": torch.nan}]
    if loss in LOSSES or family == "categorical":
        odds.append({"b": -torch.inf})
    nonfinite.check_pair("triton", family, loss, gathered, torch.float32, odds)
