"""The next block's input from the NumPy door, on every instruction set."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

core = pytest.importorskip("bll_kernels._core", reason="the compiled core is not built")
pytestmark = pytest.mark.native

TAU, TILT = 0.6, 1.25
NATURAL = ("bernoulli", "gaussian", "categorical")
FAMILIES = (*NATURAL, "gaussian-precision", "gaussian-diagonal")
#: What a stored next input is read as.
STORED = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}


@pytest.fixture(params=core.isas(), autouse=True)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    before = core.selected_isa()
    core.select_isa(request.param)
    yield request.param
    core.select_isa(before)


def means(family: str, a: Tensor, b: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """mu(alpha) and mu(rho) in float64, from the densities themselves."""
    a, b = a.double(), b.double()
    if family == "bernoulli":
        return torch.sigmoid(a), torch.sigmoid(a + TILT * b)
    if family == "gaussian":
        return a, a + TILT * b
    if family == "categorical":
        groups = [x.unflatten(-1, (-1, group)) for x in (a, a + TILT * b)]
        alpha, rho = (torch.softmax(x, -1).flatten(-2) for x in groups)
        return alpha, rho
    if family == "gaussian-precision":
        precision = TAU * TILT
        return a, (a + precision * b) / (1 + precision)
    (mean_a, log_a), (mean_b, log_b) = a.unbind(-2), b.unbind(-2)
    own, other = torch.exp(-log_a), TILT * torch.exp(-log_b)
    return mean_a, (own * mean_a + other * mean_b) / (own + other)


def rows(family: str, count: int, width: int, seed: int) -> Tensor:
    shape = (count, 2, width) if family == "gaussian-diagonal" else (count, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("mix", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_means_follow_the_densities(family: str, mix: float) -> None:
    a, b = rows(family, 23, 84, 0), rows(family, 23, 84, 1)
    alpha, rho = means(family, a, b, 7)
    want = (1 - mix) * alpha + mix * rho
    size = alpha.abs() + rho.abs() + 0.1  # of the terms, which may cancel
    options = {"group": 7, "tau": TAU, "tilt": TILT}
    plain = core.pair_loss(a.numpy(), b.numpy(), family, "kl", **options)
    for dtype, read in STORED.items():
        *losses, raw = core.pair_loss_next(
            a.numpy(), b.numpy(), family, "kl", mix=mix, next_dtype=dtype, **options
        )
        for got, same in zip(losses, plain, strict=True):
            assert got.tobytes() == same.tobytes()
        next_input = torch.from_numpy(raw).view(read).double()
        info = torch.finfo(read)
        limit = info.eps / 2 * want.abs() + info.smallest_normal * info.eps
        assert ((next_input - want).abs() <= limit + 1e-6 * size).all()
    exact = core.pair_loss_next(
        a.double().numpy(), b.double().numpy(), family, "kl", mix=mix, **options
    )[3]
    np.testing.assert_allclose(exact, want, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("group", [1, 2, 3, 10, 16, 17, 32, 40])
def test_groups_of_every_size(group: int) -> None:
    """Few and many groups to a row, masked elements, and probabilities that add up to one."""
    for count in (1, 3, 4, 16, 35):
        a, b = (rows("categorical", 3, count * group, seed) * 4 for seed in (2, 3))
        if group > 1:
            a[:, ::group] = -torch.inf
        alpha, rho = means("categorical", a, b, group)
        for mix, want in ((0.0, alpha), (1.0, rho), (0.25, 0.75 * alpha + 0.25 * rho)):
            got = core.pair_loss_next(
                a.numpy(), b.numpy(), "categorical", "kl", mix=mix, group=group, tilt=TILT
            )[3]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-30)
            np.testing.assert_allclose(got.reshape(-1, group).sum(-1), 1, rtol=1e-6)


def test_messages_are_gathered_by_label() -> None:
    a, table = rows("bernoulli", 9, 20, 4), rows("bernoulli", 3, 20, 5)
    labels = torch.arange(9) % 3
    got = core.pair_loss_next(
        a.numpy(), table.numpy(), "bernoulli", "kl", mix=1.0, labels=labels.numpy(), tilt=TILT
    )[3]
    np.testing.assert_allclose(got, means("bernoulli", a, table[labels], 1)[1], rtol=2e-6)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("mix", {"mix": 1.5}),
        ("mix", {"mix": float("nan")}),
        ("next_dtype", {"mix": 0.5, "next_dtype": "int8"}),
        ("next_dtype", {"mix": 0.5, "next_dtype": "float64"}),
    ],
)
def test_bad_options_are_named(argument: str, options: dict[str, object]) -> None:
    a = np.ones((2, 3), np.float32)
    with pytest.raises(ValueError, match=f"^{argument}: "):
        core.pair_loss_next(a, a, "bernoulli", "kl", **options)
