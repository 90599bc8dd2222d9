"""Infinities and NaN in operands of the Triton kernels: the pattern of the float64 reference."""

from __future__ import annotations

import nonfinite
import oracle
import pytest
import torch

from bll_kernels.ops import op

NATURAL = ("bernoulli", "gaussian", "categorical")
#: Families whose exponentials end above 0: under an infinite weight, a slope that the definition
#: has as 0 times infinity is infinite in these kernels.
FLOORED = ("bernoulli", "gaussian-diagonal")


@pytest.mark.parametrize("normalize", [False, True], ids=["plain", "normalized"])
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_class_losses(family: str, normalize: bool) -> None:
    if normalize and family not in NATURAL:
        normalize = False  # messages are densities already: half types instead
        dtype = torch.bfloat16
    else:
        dtype = torch.float32
    odds = nonfinite.odd_ones(nonfinite.CLASS_OPERANDS, 1)
    if family not in FLOORED:
        twos = nonfinite.odd_ones(nonfinite.CLASS_OPERANDS)[len(odds) :]
        odds += [odd for odd in twos if odd.get("weight") == torch.inf]
        assert len(odds) == 12 + 9
    nonfinite.check_class("triton", family, normalize, dtype, odds)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("loss", oracle.LOSSES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(family: str, loss: str, gathered: bool) -> None:
    odds = nonfinite.odd_ones(nonfinite.PAIR_OPERANDS, 1)
    nonfinite.check_pair("triton", family, loss, gathered, torch.float32, odds)


@pytest.mark.parametrize("gathered", [False, True], ids=["dense", "table"])
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_infinite_weight_of_a_row_in_pieces(family: str, gathered: bool) -> None:
    """It multiplies the row's evidence, not that of pieces with another sign."""
    parts = torch.tensor([[1.0, 1.0], [3.0, -2.0]]).repeat_interleave(1100, 0)  # (a, b)
    a, b = (x.expand(3, 2, -1) if family == "gaussian-diagonal" else x.expand(3, -1)
            for x in parts.unbind(1))  # fmt: skip
    labels = torch.tensor([1, 0, 2]) if gathered else None
    weight = torch.tensor([1.0, torch.inf, -2.0])
    group = 4 if family == "categorical" else 1
    for reduction, chosen in (("none", a), ("sum", a), ("none", -a)):
        rest = (family, group, 0.5, "evidence", 1.25, reduction, True, True)
        tensors = (chosen.contiguous(), b.contiguous(), labels, weight)
        nonfinite.check_op("triton", "pair_loss_value_and_grad", tensors, *rest)
        value = op("triton", "pair_loss")(*tensors, *rest[:-2])
        assert value.isinf().any() and not value.isnan().any()
