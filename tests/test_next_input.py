"""The next block's input: the mean of alpha, of the posterior, or a mix, beside the gradients."""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from cases import (
    DTYPES,
    PairCase,
    check_pair,
    make_pair,
    package_family,
    pair_functions,
    random_natural,
)
from oracle import OracleFamily
from tolerance import FLOOR, assert_same_bits
from torch import Tensor

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

MIXES: dict[str | float, float] = {"alpha": 0.0, "rho": 1.0, 0.25: 0.25}
FLOAT8 = torch.float8_e4m3fn
NEXT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, FLOAT8)

every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
every_loss = pytest.mark.parametrize("loss", oracle.LOSSES)
every_mix = pytest.mark.parametrize("mix", MIXES, ids=str)


def true_means(case: PairCase) -> tuple[Tensor, Tensor]:
    """E[z] under alpha and under rho in float64, from the derivative of the log-partition."""
    family = case.family
    a = case.a.detach().double()
    a = oracle.grid_pool(a, *case.pool) if case.pool else a
    b = case.b.detach().double()
    shape = a.shape if case.labels is not None else torch.broadcast_shapes(a.shape, b.shape)
    alpha = family.alpha(a.expand(shape))
    rho = alpha + family.beta(oracle.gather(b, case.labels, shape), case.tilt)
    # Sufficient statistics: z first, then z^2 of a Gaussian; all elements of a categorical group.
    means = (family.mean(eta).detach() for eta in (alpha, rho))
    if family.name == "categorical":
        first, second = (mean.flatten(-2) for mean in means)
    else:
        first, second = (mean[..., 0] for mean in means)
    return first, second


def assert_next(got: Tensor, case: PairCase, mix: float, dtype: torch.dtype) -> None:
    """Equal to the truth up to the arithmetic's rounding and that of the stored dtype."""
    alpha, rho = true_means(case)
    want = (1 - mix) * alpha + mix * rho
    assert got.shape == want.shape and got.dtype == dtype and got.is_contiguous()
    assert not got.requires_grad
    size = (1 - mix) * alpha.abs() + mix * rho.abs()
    if case.family.name not in ("bernoulli", "categorical"):
        # A Gaussian posterior's mean is a sum of terms of both signs.
        size = size + alpha.abs() + (rho - alpha).abs()
    info = torch.finfo(dtype)
    wide = torch.finfo(torch.float64 if case.a.dtype == torch.float64 else torch.float32)
    # A logit's rounding is its probability's relative error; kernels may flush what is not normal.
    latents = sum(x.abs().max().item() if x.numel() else 0.0 for x in (case.a, case.b))
    accuracy = FLOOR[case.a.dtype] if dtype != torch.float64 else 1e-12
    accuracy += 2 * wide.eps * latents * max(case.tilt, 1.0)
    limit = info.eps * want.abs() + accuracy * size
    limit += info.smallest_normal * info.eps + 8 * wide.smallest_normal
    assert ((got.double() - want).abs() <= limit).all()


def call(case: PairCase, next_input: str | float, **changes: Any) -> tuple[Any, ...]:
    _, twin, options = pair_functions(case.loss)
    arguments = {**options, **case.options(), "wrt": ("a", "b"), **changes}
    return twin(case.a, case.b, package_family(case.family), next_input=next_input, **arguments)


def check_next(case: PairCase, next_input: str | float, dtype: torch.dtype | None = None) -> None:
    """Right means, value and gradients of the call without them, no input changed."""
    before = [x.clone() for x in (case.a, case.b, case.labels, case.weight) if x is not None]
    value, grads, mean = call(case, next_input, next_dtype=dtype)
    assert_next(mean, case, MIXES[next_input], dtype or case.a.dtype)
    _, twin, options = pair_functions(case.loss)
    arguments = {**options, **case.options(), "wrt": ("a", "b")}
    plain, plain_grads = twin(case.a, case.b, package_family(case.family), **arguments)
    for got, want in zip((value, *grads), (plain, *plain_grads), strict=True):
        assert_same_bits(got, want)
    after = [x for x in (case.a, case.b, case.labels, case.weight) if x is not None]
    for old, new in zip(before, after, strict=True):
        assert_same_bits(new, old)


@every_mix
@every_loss
@every_family
def test_losses(backend: str, family: str, loss: str, mix: str | float) -> None:
    check_next(make_pair(family, loss, width=36), mix)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_mix
@every_family
def test_dtypes(backend: str, family: str, mix: str | float, dtype: torch.dtype) -> None:
    case = make_pair(family, "kl_full", dtype=dtype, width=44)
    for next_dtype in (None, *NEXT_DTYPES):
        check_next(case, mix, next_dtype)
    if dtype in (torch.bfloat16, torch.float16):
        check_next(case.with_options(b=case.b.float() * 1.001), mix)


@every_mix
@every_family
def test_options(backend: str, family: str, mix: str | float) -> None:
    weight = torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0])
    for reduction in ("none", "sum", "batchmean"):
        case = make_pair(family, "kl", reduction=reduction)
        check_next(case.with_options(weight=weight, tilt=0.3), mix)
    check_next(make_pair(family, "kl", batch=()), mix)
    check_next(make_pair(family, "kl", batch=(0,)), mix)
    check_next(make_pair(family, "kl", width=0), mix)
    check_next(make_pair(family, "kl", batch=(2, 3), width=1000), mix, torch.bfloat16)


@every_mix
@every_family
def test_class_table(backend: str, family: str, mix: str | float) -> None:
    labels = torch.tensor([3, 0, 3, 1, 3])
    for dtype in (torch.float32, torch.bfloat16):
        case = make_pair(family, "evidence", dtype=dtype, labels=labels)
        table = make_pair(family, batch=(6,), dtype=dtype, seed=1).b
        check_next(case.with_options(b=table), mix, FLOAT8)
        check_next(case.with_options(b=table.float(), tilt=2.0), mix)


@every_mix
def test_broadcast(backend: str, mix: str | float) -> None:
    for shapes in (((4, 3), (3,)), ((2, 4, 3), (2, 1, 3)), ((3,), (4, 3)), ((4, 1), (4, 3))):
        a, b = (torch.randn(shape) for shape in shapes)
        check_next(PairCase(OracleFamily("bernoulli"), "kl", a, b), mix)
    diagonal = OracleFamily("gaussian-diagonal")
    check_next(PairCase(diagonal, "kl", torch.randn(3, 4, 2, 5), torch.randn(3, 1, 2, 5)), mix)


@every_mix
@pytest.mark.parametrize("kind", ["mean", "max", "std"])
def test_pooled(backend: str, kind: str, mix: str | float) -> None:
    """The latents are the pooled ones; the default dtype is that of the map."""
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, 4, 5, 6).to(dtype)
        case = PairCase(OracleFamily("bernoulli"), "kl_full", x, torch.randn(16).to(dtype))
        case = case.with_options(pool=(kind, 2))
        if dtype == torch.float32:
            check_next(case, mix)
        mean = call(case, mix)[2]
        assert mean.shape == (3, 16) and mean.dtype == dtype


@every_mix
@every_family
def test_far_latents(backend: str, family: str, mix: str | float) -> None:
    """Small probabilities keep their digits; the scales cross every branch of the kernels."""
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(3)
        member = OracleFamily(family, tau=0.5, group=4 if family == "categorical" else None)
        shape = (64, 2, 16) if member.planes == 2 else (64, 16)
        a, b = (random_natural(shape, member, s, generator).to(dtype) for s in (30.0, 20.0))
        check_next(PairCase(member, "kl", a, b), mix)


def inside_poison(x: Tensor) -> Tensor:
    """The same numbers as an interior view of a buffer of NaN."""
    outer = torch.full(tuple(size + 3 for size in x.shape), torch.nan, dtype=x.dtype)
    view = outer[tuple(slice(1, 1 + size) for size in x.shape)]
    return view.copy_(x)


@every_family
def test_strides(backend: str, family: str) -> None:
    case = make_pair(family, "kl", batch=(3, 4))
    check_next(case.with_options(a=inside_poison(case.a), b=inside_poison(case.b)), 0.25)
    check_next(case.with_options(a=case.a.movedim(0, 1).contiguous().movedim(0, 1)), "rho")
    check_next(case.with_options(a=case.a.movedim(-1, 0).contiguous().movedim(0, -1)), "alpha")


@pytest.mark.parametrize("group", [1, 3, 32, 33, 600])
def test_groups(backend: str, group: int) -> None:
    """Short and long groups, messages of every form, and masked elements."""
    for scale in (0.01, 3.0, 60.0):
        case = make_pair("categorical", "kl", batch=(7,), width=3 * group, scales=(3.0, scale))
        case = case.with_options(family=OracleFamily("categorical", group=group))
        for mix in MIXES:
            check_next(case, mix)
    if group > 1:
        case = make_pair("categorical", "kl", batch=(7,), width=3 * group)
        case = case.with_options(family=OracleFamily("categorical", group=group))
        masked = case.a.clone()
        masked[:, ::group] = -torch.inf
        case.a[:, ::group] = -200.0
        for mix in MIXES:
            mean = call(case.with_options(a=masked), mix)[2]
            assert (mean[:, ::group] == 0).all()
            assert_next(mean, case, MIXES[mix], torch.float32)


def test_float8_rounds_to_nearest_even(backend: str) -> None:
    """As torch does over all of its range; its largest number beyond, NaN for NaN."""
    codes = torch.arange(256, dtype=torch.uint8).view(FLOAT8).float()
    finite = codes[torch.isfinite(codes)].sort().values
    between = torch.cat((finite, (finite[1:] + finite[:-1]) / 2, torch.tensor([463.9, 464, 465])))
    near = (between * (1 + 1e-6), between * (1 - 1e-6))
    wild = torch.tensor([470.0, 480.0, 1e9, -1e9, torch.inf, -torch.inf, 1e-30, torch.nan])
    x = torch.cat((between, *near, wild))
    _, _, mean = bk.posterior_kl_value_and_grad(
        x[None], torch.zeros(1, x.numel()), "gaussian", next_input="alpha", next_dtype=FLOAT8
    )
    want = x.clamp(-448, 448).to(FLOAT8)
    assert_same_bits(mean[0].view(torch.uint8), want.view(torch.uint8))


@every_family
def test_messages_do_not_touch_the_mean_of_alpha(backend: str, family: str) -> None:
    case = make_pair(family, "kl")
    broken = case.with_options(b=torch.full_like(case.b, torch.nan))
    mean = call(broken, "alpha")[2]
    assert_same_bits(mean, call(case, 0.0)[2])
    assert_same_bits(call(case, "rho")[2], call(case, 1)[2])


@every_family
def test_bits_do_not_depend_on_threads(backend: str, family: str, threads: None) -> None:
    case = make_pair(family, "kl", batch=(301,), width=1000)
    counts = [2, 2] if backend == "reference" else [1, 2, 1]
    results = []
    for count in counts:
        torch.set_num_threads(count)
        results.append(call(case, 0.25, next_dtype=torch.bfloat16)[2])
    for result in results[1:]:
        assert_same_bits(result, results[0])


def test_no_gradient_flows_through_it(backend: str) -> None:
    a = torch.randn(3, 4, requires_grad=True)
    b = torch.randn(3, 4, requires_grad=True)
    value, _, mean = bk.evidence_loss_value_and_grad(a, b, "bernoulli", next_input="rho")
    assert not value.requires_grad and not mean.requires_grad


def test_wanted_gradients_alone_are_computed(backend: str) -> None:
    case = make_pair("bernoulli", "kl_full")
    options = (None, None, "bernoulli", 1, 1.0, "kl_full", 1.0, "sum")
    for needs in ((True, False), (False, True), (False, False)):
        _, da, db, mean = op(backend, "pair_loss_next")(
            case.a, case.b, *options, *needs, 1.0, torch.float32
        )
        assert (da.numel() > 0, db.numel() > 0) == needs
        assert_next(mean, case, 1.0, torch.float32)
    check_pair(case)


@pytest.mark.slow
def test_compiles_in_one_graph(backend: str) -> None:
    torch._dynamo.reset()

    def step(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        return bk.posterior_kl_value_and_grad(
            a, b, "gaussian-diagonal", next_input="rho", next_dtype=torch.bfloat16
        )

    case = make_pair("gaussian-diagonal")
    compiled = torch.compile(step, fullgraph=True)
    torch.testing.assert_close(compiled(case.a, case.b), step(case.a, case.b))
    torch._dynamo.reset()


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"next_input": "beta"}, ValueError, "next_input: expected one of alpha, rho, got 'beta'"),
    ({"next_input": 1.5}, ValueError, r"next_input: expected a number in \[0, 1\], got 1.5"),
    ({"next_input": float("nan")}, ValueError, "next_input: expected a number"),
    ({"next_input": True}, TypeError, "next_input: expected None, a string or a number, got bool"),
    ({"next_input": torch.ones(())}, TypeError, "next_input: expected None.*got Tensor"),
    ({"next_dtype": torch.float32}, ValueError, "next_dtype: expected next_input beside it"),
    ({"next_input": 0.5, "next_dtype": "float32"}, TypeError, "next_dtype: expected a torch.dtype"),
    ({"next_input": 0, "next_dtype": torch.int8}, ValueError, "next_dtype: expected .*torch.int8"),
    ({"next_input": 0, "next_dtype": torch.float64}, ValueError, "beside torch.float32 a, got"),
]


@pytest.mark.parametrize(("arguments", "error", "message"), BAD, ids=str)
@pytest.mark.parametrize("loss", ["kl", "evidence"])
def test_bad_input(
    backend: str, loss: str, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    _, twin, _ = pair_functions(loss)
    with pytest.raises(error, match=message):
        twin(torch.zeros(2, 3), torch.zeros(2, 3), "bernoulli", **arguments)
