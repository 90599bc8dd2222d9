"""Inputs for one call of a public function, and the checks every such call must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import oracle
import torch
from oracle import OracleFamily
from tolerance import assert_close, assert_same_bits
from torch import Tensor

import bll_kernels as bk

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
POSTERIOR_OPTIONS: dict[str, dict[str, Any]] = {
    "kl": {},
    "kl_full": {"stop_posterior": False},
    "reverse_kl": {"direction": "alpha_rho"},
    "reverse_kl_full": {"direction": "alpha_rho", "stop_posterior": False},
}


def pair_functions(loss: str) -> tuple[Callable[..., Tensor], Callable[..., Any], dict[str, Any]]:
    """The public function of a loss, its value-and-gradient twin, and the options that pick it."""
    if loss == "evidence":
        return bk.evidence_loss, bk.evidence_loss_value_and_grad, {}
    return bk.posterior_kl, bk.posterior_kl_value_and_grad, POSTERIOR_OPTIONS[loss]


def package_family(family: OracleFamily) -> bk.Family:
    return bk.Family(family.name, tau=family.tau, group=family.group)


def random_natural(
    shape: tuple[int, ...], family: OracleFamily, scale: float, generator: torch.Generator
) -> Tensor:
    """Parameters of a message in float64: spread ``scale``, log-variances within +-1.5."""
    x = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
    if family.planes == 2:
        x[..., 1, :] = 3 * torch.rand(x[..., 1, :].shape, generator=generator).double() - 1.5
    return x


@dataclass(frozen=True)
class PairCase:
    """Arguments of posterior_kl or evidence_loss."""

    family: OracleFamily
    loss: str
    a: Tensor
    b: Tensor
    labels: Tensor | None = None
    weight: Tensor | None = None
    tilt: float = 1.0
    reduction: str = "batchmean"
    pool: tuple[str, int] | None = None

    def options(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "weight": self.weight,
            "tilt": self.tilt,
            "reduction": self.reduction,
            "pool": self.pool,
        }

    def with_options(self, **changes: Any) -> PairCase:
        return replace(self, **changes)


@dataclass(frozen=True)
class Truth:
    """Value and gradients in float64, each with the size of the terms behind it."""

    value: Tensor
    value_scale: Tensor
    grads: tuple[Tensor, ...]
    grad_scales: tuple[float, ...]
    noise: float


def _fold(dense: Tensor, case: PairCase, shape: torch.Size, is_b: bool) -> Tensor:
    """Gradient of the dense operand -> gradient of the operand the user gave."""
    if not is_b or case.labels is None:
        return dense.sum_to_size(shape)
    rows = dense.reshape(case.labels.numel(), *shape[1:])
    return torch.zeros(shape, dtype=rows.dtype).index_add(0, case.labels.long().flatten(), rows)


def pair_truth(case: PairCase, upstream: Tensor | None = None) -> Truth:
    """What the functions must return for a case; ``upstream`` as given to ``backward``."""
    family = case.family
    source = case.a.detach().double().requires_grad_()
    latents = oracle.grid_pool(source, *case.pool) if case.pool else source
    b = case.b.detach().double()
    shape = latents.shape
    if case.labels is None:
        shape = torch.broadcast_shapes(shape, b.shape)
    a = latents.detach().expand(shape).clone().requires_grad_()
    b_dense = oracle.gather(b, case.labels, shape).clone().requires_grad_()
    weight = None if case.weight is None else case.weight.double()
    plain = {"tilt": case.tilt, "weight": weight, "reduction": case.reduction}

    value = oracle.pair_loss(a, b_dense, family, case.loss, **plain)
    up = torch.ones_like(value) if upstream is None else upstream.double()
    da, db = torch.autograd.grad(value, (a, b_dense), up, materialize_grads=True)
    scale = oracle.pair_scale(a.detach(), b_dense.detach(), family, case.loss, **plain)
    size = da.abs() + db.abs()
    grad_a = _fold(da, case, latents.shape, is_b=False)
    if case.pool:
        (grad_a,) = torch.autograd.grad(latents, source, grad_a)
    grads = (grad_a, _fold(db, case, b.shape, is_b=True))
    scales = tuple(
        _fold(size, case, target, is_b).max().item() if size.numel() else 0.0
        for target, is_b in ((latents.shape, False), (b.shape, True))
    )
    factor = up.abs().max().item() if up.numel() else 0.0
    noise = oracle.noise(a.detach(), b_dense.detach(), family, case.tilt) * max(1.0, factor)
    return Truth(value.detach(), scale.detach(), grads, scales, noise)


@dataclass(frozen=True)
class Gradient:
    """A gradient to ``a``, the size of the terms each element sums, and a bound on its error."""

    want: Tensor
    size: Tensor
    noise: float


def _term_size(case: PairCase, want: Tensor) -> Tensor:
    """|want|, but for elements that sum terms of both signs.

    Categorical: mu_i(r) - mu_i(a) moves mass p_i q_j between i and every other j. The
    log-variance of gaussian-diagonal: two terms, (k - k^2 w) / 2, so the part without d.
    """
    if case.family.name == "categorical":
        a, b = case.family.alpha(case.a.double()), case.family.beta(case.b.double(), case.tilt)
        p, q = torch.softmax(a, -1), torch.softmax(a + b, -1)
        moved = (p[..., :, None] * q[..., None, :] - q[..., :, None] * p[..., None, :]).abs()
        return moved.sum(-1).reshape(want.shape)
    if case.family.name == "gaussian-diagonal":
        centred = case.with_options(b=torch.stack((case.a[..., 0, :], case.b[..., 1, :]), -2))
        size = want.abs()
        size[..., 1, :] += 2 * pair_truth(centred).grads[0][..., 1, :].abs()
        return size
    return want.abs()


def accurate_da(case: PairCase) -> Gradient:
    """Gradient to a dense ``a`` for elementwise comparisons.

    A Bernoulli latent is mirrored (z to 1 - z: a to -a, b to -b) wherever a > 0, so that the
    oracle subtracts small means instead of means near one.
    """
    a, b = case.a.double(), case.b.double()
    flip = torch.ones_like(a)
    if case.family.name == "bernoulli":
        flip = torch.where(a > 0, -1.0, 1.0).double()
    mirrored = case.with_options(a=a * flip, b=b * flip)
    noise = oracle.noise(mirrored.a, mirrored.b, case.family, case.tilt, per_latent=True)
    want = pair_truth(mirrored).grads[0] * flip
    return Gradient(want, _term_size(case, want), 0.0 if case.family.name == "bernoulli" else noise)


def check_pair(case: PairCase) -> None:
    """Twin, plain call and backward all give the truth, and no input changes."""
    function, twin, options = pair_functions(case.loss)
    options = {**options, **case.options()}
    family, dtype = package_family(case.family), case.a.dtype
    before = [x.clone() for x in (case.a, case.b, case.labels, case.weight) if x is not None]
    truth = pair_truth(case)
    limits = {"dtype": dtype}

    def check_value(value: Tensor) -> None:
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert_close(value, truth.value, scale=truth.value_scale, noise=truth.noise, **limits)

    def check_grads(grads: tuple[Tensor, ...]) -> None:
        for got, want, scale, operand in zip(
            grads, truth.grads, truth.grad_scales, (case.a, case.b), strict=True
        ):
            assert got.dtype == operand.dtype
            assert_close(got, want, scale=scale, noise=truth.noise, **limits)

    value, grads = twin(case.a, case.b, family, wrt=("a", "b"), **options)
    check_value(value)
    check_grads(grads)
    assert not value.requires_grad

    check_value(function(case.a, case.b, family, **options))

    a, b = case.a.detach().requires_grad_(), case.b.detach().requires_grad_()
    value = function(a, b, family, **options)
    check_value(value.detach())
    check_grads(torch.autograd.grad(value.sum(), (a, b), materialize_grads=True))

    after = [x for x in (case.a, case.b, case.labels, case.weight) if x is not None]
    for old, new in zip(before, after, strict=True):
        assert_same_bits(new, old)


def make_pair(
    name: str,
    loss: str = "kl",
    *,
    batch: tuple[int, ...] = (5,),
    width: int = 12,
    dtype: torch.dtype = torch.float32,
    scales: tuple[float, float] = (2.0, 1.0),
    seed: int = 0,
    **options: Any,
) -> PairCase:
    """A dense case of moderate size."""
    generator = torch.Generator().manual_seed(seed)
    family = OracleFamily(name, tau=0.5, group=4 if name == "categorical" else None)
    shape = (*batch, 2, width) if family.planes == 2 else (*batch, width)
    a, b = (random_natural(shape, family, s, generator).to(dtype) for s in scales)
    return PairCase(family, loss, a, b, **options)
