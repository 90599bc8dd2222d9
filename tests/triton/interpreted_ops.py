"""The registered Triton ops as torch sees them: schema, fake kernels, memory of their own."""

from __future__ import annotations

import pytest
import torch
from test_ops_registration import check_autocast_changes_nothing, samples
from torch import Tensor

from bll_kernels.ops import op
from bll_kernels.schemas import SCHEMAS


@pytest.mark.parametrize("name", SCHEMAS)
def test_shapes_schemas_and_memory(name: str) -> None:
    checked = 0
    for sample, given in samples():
        tensors = [x for x in given if isinstance(x, Tensor)]
        if sample != name or any(x.dtype == torch.float64 for x in tensors):
            continue
        real = op("triton", name)(*given)
        fake = op("triton", name)(*(x.to("meta") if isinstance(x, Tensor) else x for x in given))
        real, fake = ((x,) if isinstance(x, Tensor) else x for x in (real, fake))
        owned = {x.untyped_storage().data_ptr() for x in tensors}
        for got, want in zip(real, fake, strict=True):
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            assert got.stride() == want.stride()
            assert not got.numel() or got.untyped_storage().data_ptr() not in owned
        if checked < 4:
            torch.library.opcheck(op("triton", name), given)
        checked += 1
    assert checked >= 10


@pytest.mark.parametrize("name", SCHEMAS)
def test_autocast_changes_nothing(name: str) -> None:
    for sample, given in samples():
        if sample == name and all(x.dtype != torch.float64 for x in given if isinstance(x, Tensor)):
            check_autocast_changes_nothing("triton", name, given)
