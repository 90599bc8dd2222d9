"""Every backend, and the float64 oracle, against the tables computed with 140 digits."""

from __future__ import annotations

import oracle
import pytest
import torch
from golden_table import ClassRow, PairBatch, class_rows, pair_batches
from tolerance import GRADIENT_ELEMENTWISE, relative_elementwise

from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = (torch.float64, torch.float32)
#: Relative error of what the accuracy promise does not cover (values, db, full gradients).
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}
#: Part of it that is measured against the size of the terms instead of the result.
ABSOLUTE = {torch.float64: 1e-14, torch.float32: 1e-6}


def check(
    got: torch.Tensor,
    want: torch.Tensor,
    dtype: torch.dtype,
    scale: torch.Tensor | float,
    factor: torch.Tensor | float = 1.0,
) -> None:
    """``factor``: what a smallest number may have been multiplied by."""
    limit = RELATIVE[dtype] * want.abs() + ABSOLUTE[dtype] * scale
    error = (got.double() - want).abs()
    # The tables write zero below 1e-100; float32 exponentials stop near its smallest normal.
    wrong = ~(error <= limit + max(4 * factor * torch.finfo(dtype).smallest_normal, 1e-99))
    assert not wrong.any(), [
        (int(i), got.flatten()[i].item(), want.flatten()[i].item())
        for i in wrong.flatten().nonzero()[:5, 0]
    ]


def scales(batch: PairBatch) -> tuple[torch.Tensor, torch.Tensor]:
    """Size of the terms behind a value and behind a gradient; zero: relative accuracy throughout.

    The evidence of natural parameters changes sign where its terms cancel. A full gradient
    crosses zero while the value does not (v b against mu(a) - mu(r)). Elements of a group, and
    the two parameters of a latent, are held to the largest of them.
    """
    value, gradient = torch.zeros_like(batch.value), torch.zeros_like(batch.da)
    rows = (-1, *[1] * (gradient.dim() - 1))
    if batch.loss == "evidence":
        family = oracle.OracleFamily(batch.family, tau=batch.tau)
        value = oracle.term_scale(batch.a, batch.b, family, "evidence", 1.0)
    elif batch.family == "categorical":
        spread = batch.b.amax(-1) - batch.b.amin(-1)
        value = torch.where(spread < 1, 0.0, spread)
    if batch.loss.endswith("full"):
        gradient = gradient + batch.value.abs().reshape(rows)
    if batch.family in ("gaussian-diagonal", "categorical"):
        gradient = gradient + batch.da.abs().flatten(1).amax(1).reshape(rows)
    return value, gradient


def class_scales(row: ClassRow) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sizes of the scores, the residuals and the slopes behind a class loss.

    A wrong digit of a score moves every probability by that much.
    """
    family = oracle.OracleFamily(row.family, tau=row.tau)
    scores = oracle.class_scores(row.a, row.table, family, row.bias, row.normalize)
    slope = (1 + row.a.abs().max() + row.table.abs().max()) * max(1.0, row.tau)
    return 1 + scores.abs().max(), row.dbias.abs().max(), slope


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair_losses(backend: str, family: str, dtype: torch.dtype) -> None:
    for batch in pair_batches(family):
        a, b = batch.a.to(dtype), batch.b.to(dtype)
        options = (family, batch.group, batch.tau, batch.loss, 1.0, "none")
        value, da, db = op(backend, "pair_loss_value_and_grad")(
            a, b, None, None, *options, True, True
        )
        value_scale, gradient_scale = scales(batch)
        check(value, batch.value, dtype, value_scale)
        check(da, batch.da, dtype, gradient_scale)
        check(db, batch.db, dtype, gradient_scale)
        if batch.loss != "evidence":
            assert (value >= 0).all()


@pytest.mark.parametrize("loss", ["kl", "evidence"])
@pytest.mark.parametrize("family", ["bernoulli", "gaussian", "gaussian-precision"])
def test_promised_gradient_accuracy(backend: str, family: str, loss: str) -> None:
    for batch in pair_batches(family):
        if batch.loss != loss:
            continue
        a, b = batch.a.float(), batch.b.float()
        options = (family, 1, batch.tau, loss, 1.0, "none")
        _, da, _ = op(backend, "pair_loss_value_and_grad")(a, b, None, None, *options, True, True)
        assert (
            relative_elementwise(da, batch.da.abs(), batch.da)
            <= GRADIENT_ELEMENTWISE[torch.float32]
        )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_class_losses(backend: str, family: str, dtype: torch.dtype) -> None:
    for row in class_rows(family):
        group = row.a.shape[-1]
        value, da, dtable, dbias = op(backend, "class_loss_value_and_grad")(
            row.a.to(dtype).unsqueeze(0),
            row.table.to(dtype),
            torch.tensor([row.label]),
            row.bias.to(dtype),
            None,
            *(family, group, row.tau, row.normalize, 1.0, "none"),
            *(True, True, True),
        )
        size, residual, slope = class_scales(row)
        check(value[0], row.value, dtype, size)
        check(dbias, row.dbias, dtype, size * residual)
        check(da[0], row.da, dtype, size * slope * residual, slope)
        check(dtable, row.dtable, dtype, size * slope * residual, slope)


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_the_oracle_itself(family: str) -> None:
    """The oracle the other suites lean on gives the golden numbers."""
    for batch in pair_batches(family):
        mild = (batch.a.abs().flatten(1).amax(1) <= 8) & (batch.b.abs().flatten(1).amax(1) <= 8)
        a, b = batch.a[mild].requires_grad_(), batch.b[mild].requires_grad_()
        member = oracle.OracleFamily(family, tau=batch.tau)
        value = oracle.pair_loss(a, b, member, batch.loss, reduction="none")
        da, db = torch.autograd.grad(value.sum(), (a, b), materialize_grads=True)
        for got, want in ((value, batch.value), (da, batch.da), (db, batch.db)):
            torch.testing.assert_close(got, want[mild], rtol=1e-9, atol=1e-9)
