"""The NumPy door to the torch-free kernels, `bll_kernels._core`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

core = pytest.importorskip("bll_kernels._core", reason="the compiled core is not built")
pytestmark = pytest.mark.native

PLANES = {"gaussian-diagonal": 2}
FAMILIES = ("bernoulli", "gaussian", "gaussian-precision", "gaussian-diagonal", "categorical")
TAU = 0.6


@pytest.fixture(params=core.isas())
def isa(request: pytest.FixtureRequest):
    """Every instruction set this processor runs."""
    before = core.selected_isa()
    core.select_isa(request.param)
    yield request.param
    core.select_isa(before)


@pytest.fixture
def pieces():
    """Restores the number of pieces parallel loops are split into."""
    yield core.set_pieces
    core.set_pieces(1)


def latents(rng: np.random.Generator, family: str, rows: int, width: int, scale: float = 1.0):
    shape = (rows, 2, width) if PLANES.get(family) else (rows, width)
    x = rng.normal(size=shape) * scale
    if PLANES.get(family):
        x[:, 1] = rng.normal(size=(rows, width)) * 0.3
    return x.astype(np.float32)


def log_evidence(family: str, a: torch.Tensor, b: torch.Tensor, group: int) -> torch.Tensor:
    """log E_alpha[beta] from the log-partition, or the normalised overlap of two Gaussians."""
    if family == "gaussian-precision":
        variance = torch.tensor(1 + 1 / TAU, dtype=a.dtype)
        return torch.distributions.Normal(a, variance.sqrt()).log_prob(b).sum(-1)
    if family == "gaussian-diagonal":
        (mean_a, log_a), (mean_b, log_b) = a.unbind(-2), b.unbind(-2)
        spread = (log_a.exp() + log_b.exp()).sqrt()
        return torch.distributions.Normal(mean_a, spread).log_prob(mean_b).sum(-1)
    partition = {
        "bernoulli": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
        "gaussian": lambda x: x * x / 2,
        "categorical": lambda x: x.unflatten(-1, (-1, group)).logsumexp(-1),
    }[family]
    return (partition(a + b) - partition(a)).sum(-1)


def class_oracle(family, a, table, labels, bias, weight, group, normalize):
    """Loss per row and its gradients by autograd in float64."""
    a, table, bias = (
        torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (a, table, bias)
    )
    scores = log_evidence(family, a.unsqueeze(1), table, group) + bias
    if normalize and family in ("bernoulli", "gaussian", "categorical"):
        scores = scores - log_evidence(family, torch.zeros_like(table), table, group)
    loss = functional.cross_entropy(scores, torch.from_numpy(labels), reduction="none")
    loss = loss * torch.tensor(weight, dtype=torch.float64)
    return loss.detach(), torch.autograd.grad(loss.mean(), (a, table, bias))


def relative(got: np.ndarray, want: torch.Tensor) -> float:
    difference = np.asarray(got, dtype=np.float64) - want.numpy()
    return float(np.linalg.norm(difference) / (np.linalg.norm(want.numpy()) + 1e-12))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [(1, 1, 4), (5, 3, 12), (18, 7, 68), (40, 21, 1032)])
@pytest.mark.parametrize("scale", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_class_loss_against_autograd(isa, family, scale, shape, normalize):
    rows, classes, width = shape
    rng = np.random.default_rng(rows + classes)
    a, table = latents(rng, family, rows, width), latents(rng, family, classes, width, scale)
    bias = rng.normal(size=classes).astype(np.float32)
    weight = rng.random(rows).astype(np.float32)
    labels = rng.integers(0, classes, size=rows)
    want, grads = class_oracle(family, a, table, labels, bias, weight, 4, normalize)
    for dtype, tolerance in ((np.float64, 1e-11), (np.float32, 4e-5)):
        x, t, c, w = (v.astype(dtype) for v in (a, table, bias, weight))
        options = {"group": 4, "tau": TAU, "normalize_message": normalize}
        value, _ = core.class_loss(x, t, labels, family, bias=c, weight=w, **options)
        size = float(want.abs().max()) + 1
        np.testing.assert_allclose(value, want, rtol=tolerance, atol=tolerance * size)
        mean, residual = core.class_loss(
            x, t, labels, family, bias=c, weight=w, reduction="batchmean", **options
        )
        assert abs(float(mean) - float(want.mean())) <= tolerance * size
        got = core.class_loss_backward(residual, x, t, family, **options)
        if classes == 1:
            assert all(not g.any() for g in got)
            continue
        for g, expected in zip(got, grads, strict=True):
            assert g.dtype == dtype
            assert relative(g, expected) <= 3 * tolerance


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_huge_messages_stay_finite_and_right(isa, family):
    rng = np.random.default_rng(3)
    a, table = latents(rng, family, 6, 20, 20.0), latents(rng, family, 4, 20, 60.0)
    labels = rng.integers(0, 4, size=6)
    bias, weight = np.zeros(4, np.float32), np.ones(6, np.float32)
    want, grads = class_oracle(family, a, table, labels, bias, weight, 4, False)
    value, residual = core.class_loss(a, table, labels, family, group=4, reduction="none")
    np.testing.assert_allclose(value, want, rtol=3e-6, atol=1e-3)
    got = core.class_loss_backward(residual / np.float32(6), a, table, family, group=4)
    assert all(np.isfinite(g).all() for g in got)
    assert relative(got[1], grads[1]) <= 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_bits_do_not_depend_on_the_split(isa, family, pieces):
    rng = np.random.default_rng(5)
    a, table = latents(rng, family, 1500, 96), latents(rng, family, 6, 96)
    labels = rng.integers(0, 6, size=1500)
    results = []
    for count in (1, 2, 7):
        pieces(count)
        value, residual = core.class_loss(a, table, labels, family, group=4, reduction="batchmean")
        grads = core.class_loss_backward(residual, a, table, family, group=4)
        pair = core.pair_loss(a, table, family, "evidence", labels=labels, group=4, reduction="sum")
        results.append((value, residual, *grads, *pair))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            assert got.tobytes() == want.tobytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_its_neighbours(isa, family):
    rng = np.random.default_rng(6)
    a, table = latents(rng, family, 19, 600), latents(rng, family, 5, 600)
    labels = rng.integers(0, 5, size=19)
    value, residual = core.class_loss(a, table, labels, family, group=4)
    for i in (0, 7, 18):
        alone = core.class_loss(a[i : i + 1], table, labels[i : i + 1], family, group=4)
        assert alone[0].tobytes() == value[i : i + 1].tobytes()
        assert alone[1].tobytes() == residual[i : i + 1].tobytes()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_inputs_are_those_of_float32(isa, family, dtype):
    rng = np.random.default_rng(7)
    torch_type = getattr(torch, dtype)
    a, table = (torch.from_numpy(latents(rng, family, n, 132)).to(torch_type) for n in (9, 6))
    labels = rng.integers(0, 6, size=9)
    halves = [
        x.view(torch.uint16).numpy() if dtype == "bfloat16" else x.numpy() for x in (a, table)
    ]
    floats = [x.float().numpy() for x in (a, table)]
    value, residual = core.class_loss(*halves, labels, family, group=4)
    want, want_residual = core.class_loss(*floats, labels, family, group=4)
    assert value.dtype == residual.dtype == np.float32
    np.testing.assert_allclose(value, want, rtol=1e-6)
    np.testing.assert_allclose(residual, want_residual, rtol=1e-5, atol=1e-7)
    grads = core.class_loss_backward(residual, *halves, family, group=4)
    want_grads = core.class_loss_backward(want_residual, *floats, family, group=4)
    for got, full in zip(grads[:2], want_grads[:2], strict=True):
        bits = torch.from_numpy(got)
        rounded = (bits.view(torch_type) if dtype == "bfloat16" else bits).float()
        unit = 2.0**-8 if dtype == "bfloat16" else 2.0**-11
        np.testing.assert_allclose(rounded, full, rtol=1.01 * unit, atol=1e-7)


@pytest.mark.parametrize("kind", ["mean", "max", "std"])
@pytest.mark.parametrize("grid", [1, 2, 3, 4, 9])
@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 70, 5, 6), (2, 4, 33, 17), (1, 2, 1, 1)])
def test_pooling_against_autograd(isa, shape, grid, kind):
    rng = np.random.default_rng(8)
    x = torch.tensor(rng.normal(size=shape), requires_grad=True)
    upstream = torch.tensor(rng.normal(size=(shape[0], shape[1] * grid * grid)))
    cells = []
    for i in range(grid):
        for j in range(grid):
            rows = slice(i * shape[2] // grid, -(-(i + 1) * shape[2] // grid))
            columns = slice(j * shape[3] // grid, -(-(j + 1) * shape[3] // grid))
            cell = x[:, :, rows, columns].flatten(2)
            if kind == "mean":
                cells.append(cell.mean(-1))
            elif kind == "max":
                cells.append(cell.max(-1).values)
            else:
                cells.append(cell.std(-1) if cell.shape[-1] > 1 else 0 * cell[:, :, 0])
    want = torch.stack(cells, -1).flatten(1)
    (slope,) = torch.autograd.grad(want, x, upstream)
    for channels_last in (False, True):
        order = (0, 2, 3, 1) if channels_last else (0, 1, 2, 3)
        for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
            image = np.ascontiguousarray(x.detach().numpy().transpose(order).astype(dtype))
            pooled = core.grid_pool(image, kind, grid, channels_last=channels_last)
            np.testing.assert_allclose(pooled, want.detach(), rtol=tolerance, atol=tolerance)
            got = core.grid_pool_backward(
                upstream.numpy().astype(dtype), image, kind, grid, channels_last=channels_last
            )
            expected = slope.numpy().transpose(order)
            size = np.abs(expected).max() + 1e-3
            np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance * size)


@pytest.mark.parametrize("channels_last", [False, True])
def test_pooling_of_constant_cells_and_ties(isa, channels_last):
    image = np.full((1, 1, 4, 4), 0.1, np.float32)
    if channels_last:
        image = image.reshape(1, 4, 4, 1)
    upstream = np.ones((1, 4), np.float32)
    assert not core.grid_pool(image, "std", 2, channels_last=channels_last).any()
    assert not core.grid_pool_backward(upstream, image, "std", 2, channels_last=channels_last).any()
    first = core.grid_pool_backward(upstream, image, "max", 2, channels_last=channels_last)
    assert np.flatnonzero(first).tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("channels_last", [False, True])
def test_max_pooling_meets_nan(isa, channels_last):
    image = np.arange(16, dtype=np.float32).reshape(1, 1, 4, 4)
    image[0, 0, 0, 1] = np.nan
    if channels_last:
        image = image.reshape(1, 4, 4, 1)
    pooled = core.grid_pool(image, "max", 2, channels_last=channels_last)
    assert np.isnan(pooled[0, 0]) and pooled[0, 1:].tolist() == [7, 13, 15]
    slope = core.grid_pool_backward(
        np.ones((1, 4), np.float32), image, "max", 2, channels_last=channels_last
    )
    assert np.flatnonzero(slope).tolist() == [1, 7, 13, 15]


@pytest.mark.parametrize("shape", [(5, 3, 4), (40, 70, 1), (3, 2, 600)], ids=str)
def test_standardised_channels(isa, shape):
    rng = np.random.default_rng(9)
    x = torch.tensor(rng.normal(2, 3, shape), requires_grad=True)
    upstream = torch.tensor(rng.normal(size=shape))
    variance, mean = torch.var_mean(x, (0, 2), correction=0, keepdim=True)
    want = (x - mean) / (variance + 0.1).sqrt()
    (slope,) = torch.autograd.grad(want, x, upstream)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 2e-5)):
        got, scale = core.standardize_channels(x.detach().numpy().astype(dtype), eps=0.1)
        np.testing.assert_allclose(got, want.detach(), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(
            scale, (variance.detach().flatten() + 0.1).rsqrt(), rtol=tolerance
        )
        grad = core.standardize_channels_backward(upstream.numpy().astype(dtype), got, scale)
        np.testing.assert_allclose(grad, slope, rtol=tolerance, atol=tolerance)
    with pytest.raises(ValueError, match=r"^x: expected \[rows, channels, cells\]"):
        core.standardize_channels(np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"^x: expected at least one number"):
        core.standardize_channels(np.zeros((0, 3, 1)))
    with pytest.raises(TypeError, match=r"^x: expected float64 or float32"):
        core.standardize_channels(np.zeros((2, 3, 1), np.float16))
    with pytest.raises(ValueError, match=r"^scale: "):
        core.standardize_channels_backward(grad, got, scale[:1])


def test_nothing_in_nothing_out(isa):
    empty, table = np.zeros((0, 5), np.float32), np.ones((3, 5), np.float32)
    labels = np.zeros(0, np.int64)
    value, residual = core.class_loss(empty, table, labels, "bernoulli", reduction="batchmean")
    assert value == 0 and residual.shape == (0, 3)
    grads = core.class_loss_backward(residual, empty, table, "bernoulli")
    assert [g.shape for g in grads] == [(0, 5), (3, 5), (3,)]
    assert not any(g.any() for g in grads)
    value, residual = core.class_loss(
        np.zeros((2, 0)), np.zeros((4, 0)), np.array([0, 3]), "categorical", group=0
    )
    np.testing.assert_allclose(value, np.log(4))
    assert core.grid_pool(np.zeros((0, 3, 4, 4)), "mean", 2).shape == (0, 12)


BAD = {
    "family": (ValueError, lambda a, b: core.pair_loss(a, b, "poisson-gamma", "kl")),
    "loss": (ValueError, lambda a, b: core.pair_loss(a, b, "bernoulli", "mse")),
    "reduction": (
        ValueError,
        lambda a, b: core.pair_loss(a, b, "bernoulli", "kl", reduction="max"),
    ),
    "a": (TypeError, lambda a, b: core.pair_loss(a.astype(np.int32), b, "bernoulli", "kl")),
    "b": (TypeError, lambda a, b: core.pair_loss(a, b.astype(np.float64), "bernoulli", "kl")),
    "group": (ValueError, lambda a, b: core.pair_loss(a, b, "categorical", "kl", group=4)),
    "tau": (ValueError, lambda a, b: core.pair_loss(a, b, "gaussian-precision", "kl", tau=-1.0)),
    "tilt": (ValueError, lambda a, b: core.pair_loss(a, b, "bernoulli", "kl", tilt=np.inf)),
    "labels": (
        ValueError,
        lambda a, b: core.class_loss(a, b, np.array([0, 2]), "bernoulli"),
    ),
    "weight": (
        ValueError,
        lambda a, b: core.pair_loss(a, b, "bernoulli", "kl", weight=np.ones(3, np.float32)),
    ),
    "grad": (
        TypeError,
        lambda a, b: core.pair_loss(a, b, "bernoulli", "kl", grad=np.ones(2, np.float64)),
    ),
    "table": (ValueError, lambda a, b: core.class_loss(a, b[:, :2], np.zeros(2, int), "bernoulli")),
    "grid": (ValueError, lambda a, b: core.grid_pool(np.zeros((1, 1, 2, 2)), "mean", 0)),
    "kind": (ValueError, lambda a, b: core.grid_pool(np.zeros((1, 1, 2, 2)), "sum", 1)),
    "x": (ValueError, lambda a, b: core.grid_pool(a, "mean", 1)),
    "name": (ValueError, lambda a, b: core.select_isa("mmx")),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments_are_named(argument):
    error, call = BAD[argument]
    a, b = np.ones((2, 3), np.float32), np.ones((2, 3), np.float32)
    with pytest.raises(error, match=f"^{argument}: "):
        call(a, b)


def test_lists():
    assert tuple(core.families()) == FAMILIES
    assert core.losses() == ["kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence"]
    assert core.isas()[0] == "portable" and core.selected_isa() in core.isas()
    assert "g++" in core.built_with() or "clang" in core.built_with()
