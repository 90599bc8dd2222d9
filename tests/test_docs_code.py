"""The code in the pages on wrapping runs."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import bll
import bll_kernels

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", ["wrapping.md", "from-autograd.md", "from-liger.md"])
def test_code_of_the_page_runs(page):
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), re.S)
    assert blocks
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10))
    names = {"bll": bll, "bll_kernels": bll_kernels, "torch": torch, "model": model}
    names |= {"x": torch.randn(4, 6), "y": torch.tensor([0, 9, 3, 3])}
    names |= {"hidden": torch.randn(4, 5, requires_grad=True), "labels": names["y"]}
    names["weight"] = torch.randn(10, 5, requires_grad=True)
    for block in blocks:
        exec(block, names)
