"""The compiled core behind its NumPy door: every instruction set against the golden tables."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import oracle
import pytest
import torch
from cases import accurate_da, make_pair
from conftest import REQUIRED
from golden_table import class_rows, pair_batches
from test_golden import check, class_scales, scales
from tolerance import MESSAGE_SCALES, assert_gradient_accuracy


def load() -> ModuleType | None:
    try:
        return importlib.import_module("bll_kernels._core")
    except ImportError:
        return None


CORE = load()
ISAS = CORE.isas() if CORE else ["not built"]


@pytest.fixture(params=ISAS)
def core(request: pytest.FixtureRequest) -> Iterator[ModuleType]:
    """The core, switched to one instruction set."""
    if CORE is None:
        reason = "bll_kernels._core is not built"
        if "native" in REQUIRED:
            pytest.fail(f"BLL_REQUIRE asks for native: {reason}")
        pytest.skip(reason)
    CORE.select_isa(request.param)
    assert CORE.selected_isa() == request.param
    yield CORE
    CORE.select_isa(ISAS[-1])
    CORE.set_pieces(1)


def tensors(arrays: tuple[Any, ...]) -> list[torch.Tensor]:
    return [torch.from_numpy(np.atleast_1d(array)) for array in arrays]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(core: ModuleType, family: str, dtype: torch.dtype) -> None:
    for batch in pair_batches(family):
        a, b = batch.a.to(dtype).numpy(), batch.b.to(dtype).numpy()
        value, da, db = tensors(
            core.pair_loss(a, b, family, batch.loss, group=batch.group, tau=batch.tau)
        )
        value_scale, gradient_scale = scales(batch)
        check(value, batch.value, dtype, value_scale)
        check(da, batch.da, dtype, gradient_scale)
        check(db, batch.db, dtype, gradient_scale)
        if batch.loss != "evidence":
            assert (value >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_class_losses(core: ModuleType, family: str, dtype: torch.dtype) -> None:
    for row in class_rows(family):
        a, table = row.a.to(dtype).unsqueeze(0).numpy(), row.table.to(dtype).numpy()
        options = {"group": row.a.shape[-1], "tau": row.tau, "normalize_message": row.normalize}
        value, residual = core.class_loss(
            a, table, np.array([row.label]), family, bias=row.bias.to(dtype).numpy(), **options
        )
        grads = core.class_loss_backward(residual, a, table, family, **options)
        (value,), (da, dtable, dbias) = tensors((value,)), tensors(grads)
        size, residual_size, slope = class_scales(row)
        check(value[0], row.value, dtype, size)
        check(dbias, row.dbias, dtype, size * residual_size)
        check(da[0], row.da, dtype, size * slope * residual_size, slope)
        check(dtable, row.dtable, dtype, size * slope * residual_size, slope)


@pytest.mark.parametrize("scale", MESSAGE_SCALES)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_promised_gradient_accuracy(core: ModuleType, family: str, scale: float) -> None:
    """On rows long enough for the vector loops and their tails."""
    case = make_pair(family, batch=(8,), width=1004, scales=(3.0, scale), reduction="none")
    if family == "gaussian-diagonal":
        wide = torch.tensor([[0.0], [-2 * torch.tensor(scale).log().item()]])
        case = case.with_options(b=case.b + wide)
    _, da, _ = core.pair_loss(
        case.a.numpy(), case.b.numpy(), family, "kl", group=case.family.group or 1,
        tau=case.family.tau,
    )  # fmt: skip
    truth = accurate_da(case)
    assert_gradient_accuracy(
        torch.from_numpy(da), truth.want, torch.float32, truth.size, truth.noise
    )


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pieces_of_work_do_not_change_bits(core: ModuleType, family: str) -> None:
    """However the rows are shared out, sums come out the same."""
    case = make_pair(family, batch=(211,), width=260)
    labels = torch.randint(7, (211,)).numpy()
    a, table = case.a.numpy(), case.b[:7].contiguous().numpy()
    options = {"group": case.family.group or 1, "tau": case.family.tau}
    found = []
    for pieces in (1, 2, 5):
        core.set_pieces(pieces)
        dense = core.pair_loss(
            a, case.b.numpy(), family, "kl_full", reduction="batchmean", **options
        )
        gathered = core.pair_loss(
            a, table, family, "evidence", labels=labels, reduction="sum", **options
        )
        value, residual = core.class_loss(a, table, labels, family, reduction="sum", **options)
        grads = core.class_loss_backward(residual, a, table, family, **options)
        found.append((*dense, *gathered, value, residual, *grads))
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert np.asarray(got).tobytes() == np.asarray(want).tobytes()
