"""Infinities and NaN in the latents of the Triton kernels: the pattern of the float64 reference.

Class losses: where messages rule a state out (b = -inf). Weights are not among them.
"""

from __future__ import annotations

import nonfinite
import oracle
import pytest
import torch

NATURAL = ("bernoulli", "categorical")


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("family", NATURAL)
def test_class_losses(family: str, normalize: bool) -> None:
    for odd in ({"table": -torch.inf}, {"a": -torch.inf}, {"table": torch.nan}):
        nonfinite.check_class("triton", family, normalize, torch.float32, [odd])


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(family: str, loss: str, gathered: bool) -> None:
    odds = nonfinite.odd_ones(("a", "b"), 1)
    nonfinite.check_pair("triton", family, loss, gathered, torch.float32, odds)
