"""Infinities and NaN in the latents of the CUDA kernels: the pattern of the float64 reference.

Weights are not among them: a kernel weighs parts of a row, whose terms then are infinite with both
signs where the row's sum is not. Nor are Gaussian class losses, where a score of +inf gives NaN.
"""

from __future__ import annotations

import nonfinite
import oracle
import pytest
import torch
from emulated import emulation

pytest_plugins = ["emulated"]
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def _device() -> object:
    with emulation(0):
        yield


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
def test_class_losses(normalize: bool) -> None:
    odds = nonfinite.odd_ones(("a", "table", "bias"), 1)
    nonfinite.check_class("emulated", "bernoulli", normalize, FLOAT, odds)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(family: str, loss: str, gathered: bool) -> None:
    odds = nonfinite.odd_ones(("a", "b"))
    nonfinite.check_pair("emulated", family, loss, gathered, FLOAT, odds)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_next_input(family: str) -> None:
    nonfinite.check_next("emulated", family, 0.25)
