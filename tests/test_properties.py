"""Identities that any correct implementation satisfies, whatever formula it uses."""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import make_pair, package_family, pair_functions
from tolerance import assert_close
from torch import Tensor

import bll_kernels as bk

NATURAL = ("bernoulli", "gaussian", "categorical")
every_family = pytest.mark.parametrize("family", oracle.FAMILIES)
natural_family = pytest.mark.parametrize("family", NATURAL)


def evaluate(
    family: str, loss: str, a: Tensor, b: Tensor, **options: object
) -> tuple[Tensor, Tensor, Tensor]:
    """Row values and both gradients of the sum."""
    _, twin, extra = pair_functions(loss)
    member = package_family(make_pair(family).family)
    arguments = {"wrt": ("a", "b"), "reduction": "none", **extra, **options}
    value, (da, db) = twin(a, b, member, **arguments)
    return value, da, db


def moderate(family: str, **options: object) -> tuple[Tensor, Tensor]:
    case = make_pair(family, batch=(40,), width=24, **options)
    return case.a, case.b


@natural_family
@pytest.mark.parametrize("loss", oracle.LOSSES)
def test_no_message_no_loss(backend: str, family: str, loss: str) -> None:
    a, b = moderate(family)
    value, da, db = evaluate(family, loss, a, torch.zeros_like(b))
    assert (value == 0).all()
    assert (da == 0).all()
    if loss != "evidence":
        assert (db == 0).all()


@every_family
@pytest.mark.parametrize("loss", [x for x in oracle.LOSSES if x != "evidence"])
def test_divergences_are_not_negative(backend: str, family: str, loss: str) -> None:
    for scales in ((3.0, 2.0), (8.0, 0.01), (0.1, 20.0)):
        value, _, _ = evaluate(family, loss, *moderate(family, scales=scales))
        assert (value >= 0).all()


@every_family
def test_gradients_are_there(backend: str, family: str) -> None:
    """da is not zero where it must not be; the full KL of the fixed-variance Gaussian is flat."""
    a, b = moderate(family)
    for loss in oracle.LOSSES:
        _, da, db = evaluate(family, loss, a, b)
        flat = family == "gaussian" and loss in ("kl_full", "reverse_kl_full")
        assert (da == 0).all() if flat else (da != 0).float().mean() > 0.99
        stopped = loss in oracle.STOPPED
        assert (db == 0).all() if stopped else (db != 0).float().mean() > 0.99


@every_family
def test_stopped_kl_and_evidence_move_a_alike(backend: str, family: str) -> None:
    a, b = moderate(family)
    _, stopped, _ = evaluate(family, "kl", a, b)
    _, evidence, _ = evaluate(family, "evidence", a, b)
    torch.testing.assert_close(stopped, evidence, rtol=1e-6, atol=1e-7)


@every_family
def test_stopped_and_full_have_one_value(backend: str, family: str) -> None:
    a, b = moderate(family)
    for loss in ("kl", "reverse_kl"):
        stopped, full = (evaluate(family, name, a, b)[0] for name in (loss, f"{loss}_full"))
        torch.testing.assert_close(stopped, full, rtol=1e-6, atol=0)


@natural_family
def test_free_energy(backend: str, family: str) -> None:
    """KL(rho || alpha) - E_rho[log beta] = -log E_alpha[beta]."""
    a, b = (x.double() for x in moderate(family))
    kl, _, db_kl = evaluate(family, "kl", a, b)
    evidence, _, mu_rho = evaluate(family, "evidence", a, b)
    torch.testing.assert_close(kl + (b * mu_rho).sum(-1), evidence, rtol=1e-10, atol=1e-10)
    assert (db_kl == 0).all()


@natural_family
def test_jeffreys(backend: str, family: str) -> None:
    """The two divergences add up to b . (mu(rho) - mu(alpha))."""
    a, b = moderate(family)
    forward, da, _ = evaluate(family, "kl", a, b)
    backward, _, _ = evaluate(family, "reverse_kl", a, b)
    torch.testing.assert_close(forward + backward, -(b * da).sum(-1), rtol=2e-6, atol=1e-7)


@natural_family
def test_small_messages_move_along_the_variance(backend: str, family: str) -> None:
    """mu(a + b) - mu(a) = v(a) b to first order, which is also the reverse stopped gradient."""
    a, b = (x.double() for x in moderate(family, scales=(2.0, 1e-5)))
    _, da, _ = evaluate(family, "kl", a, b)
    _, reverse, _ = evaluate(family, "reverse_kl", a, b)
    torch.testing.assert_close(da, reverse, rtol=0, atol=2e-9)
    assert da.abs().max() > 1e-7


@every_family
def test_latents_add_up(backend: str, family: str) -> None:
    a, b = moderate(family)
    whole, da, db = evaluate(family, "kl_full", a, b)
    parts = [evaluate(family, "kl_full", a[..., s], b[..., s]) for s in (slice(8), slice(8, 24))]
    torch.testing.assert_close(whole, parts[0][0] + parts[1][0], rtol=1e-5, atol=1e-6)
    for i, grad in ((1, da), (2, db)):
        together = torch.cat([part[i] for part in parts], -1)
        torch.testing.assert_close(grad, together, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", oracle.LOSSES)
def test_categorical_ignores_a_shift(backend: str, loss: str) -> None:
    a, b = (x.double() for x in moderate("categorical"))
    value, da, db = evaluate("categorical", loss, a, b)
    for shifted in ((a + 7, b), (a, b - 3)):
        other, oda, odb = evaluate("categorical", loss, *shifted)
        move = 6 * 3.0 if loss == "evidence" and shifted[1] is not b else 0.0
        torch.testing.assert_close(other, value + move)
        torch.testing.assert_close(oda, da)
        if not move:
            torch.testing.assert_close(odb, db)
    sums = da.unflatten(-1, (-1, 4)).sum(-1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-12, rtol=0)


def test_two_categories_are_a_bernoulli(backend: str) -> None:
    a, b = moderate("bernoulli")
    family = bk.Family("categorical", group=2)
    pairs = [torch.stack((torch.zeros_like(x), x), -1).flatten(-2) for x in (a, b)]
    for loss in oracle.LOSSES:
        _, twin, options = pair_functions(loss)
        arguments = {"wrt": ("a", "b"), "reduction": "none", **options}
        value, (da, db) = twin(*pairs, family, **arguments)
        want, want_da, want_db = evaluate("bernoulli", loss, a, b)
        torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(da[..., 1::2], want_da, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(db[..., 1::2], want_db, rtol=1e-5, atol=1e-6)


def test_bernoulli_mirror(backend: str) -> None:
    """z to 1 - z changes the sign of every parameter and gradient, bit for bit."""
    a, b = moderate("bernoulli", scales=(6.0, 1.0))
    for loss in ("kl", "reverse_kl"):
        value, da, _ = evaluate("bernoulli", loss, a, b)
        mirrored, oda, _ = evaluate("bernoulli", loss, -a, -b)
        torch.testing.assert_close(mirrored, value, rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(oda, -da, rtol=1e-6, atol=0)


@pytest.mark.parametrize("loss", oracle.LOSSES)
def test_diagonal_contains_precision(backend: str, loss: str) -> None:
    """Unit variance in alpha and log-variance -log tau in beta give gaussian-precision."""
    a, b = moderate("gaussian-precision")
    logvar = torch.full_like(b, torch.tensor(0.5).log().neg().item())
    planes = (torch.stack((a, torch.zeros_like(a)), -2), torch.stack((b, logvar), -2))
    want, want_da, want_db = evaluate("gaussian-precision", loss, a, b)
    value, da, db = evaluate("gaussian-diagonal", loss, *planes)
    torch.testing.assert_close(value, want, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(da[..., 0, :], want_da, rtol=2e-6, atol=1e-6)
    torch.testing.assert_close(db[..., 0, :], want_db, rtol=2e-6, atol=1e-6)


@every_family
@pytest.mark.parametrize("tilt", [0.25, 3.0])
def test_tilt_is_a_power_of_beta(backend: str, family: str, tilt: float) -> None:
    a, b = moderate(family)
    powered, member = b * tilt, make_pair(family).family
    if family == "gaussian-diagonal":
        shift = torch.tensor([[0.0], [torch.tensor(tilt).log().item()]])
        powered = b - shift
    elif family == "gaussian-precision":
        powered, member = b, oracle.OracleFamily(family, tau=member.tau * tilt)
    for loss in oracle.LOSSES:
        _, twin, options = pair_functions(loss)
        tilted = evaluate(family, loss, a, b, tilt=tilt)
        value, (da, db) = twin(
            a, powered, package_family(member), wrt=("a", "b"), reduction="none", **options
        )
        slope = tilt if family in NATURAL else 1.0
        torch.testing.assert_close(tilted[0], value, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tilted[1], da, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(tilted[2], slope * db, rtol=1e-5, atol=1e-5)


def test_a_message_of_minus_the_loss_gradient_recovers_backprop(backend: str) -> None:
    """With b = -dL/dmu the stopped KL moves a as backpropagation does, to first order."""
    torch.manual_seed(3)
    weight, target = torch.randn(5, 8).double(), torch.randn(4, 5).double()
    logits = torch.randn(4, 8, dtype=torch.float64, requires_grad=True)
    mean = torch.sigmoid(logits)
    loss = 0.5 * (mean @ weight.T - target).square().sum()
    (upstream,) = torch.autograd.grad(loss, mean, retain_graph=True)
    (backprop,) = torch.autograd.grad(loss, logits)
    errors = []
    for size in (1e-1, 1e-2, 1e-3):
        _, (da,) = bk.posterior_kl_value_and_grad(
            logits.detach(), -size * upstream, "bernoulli", reduction="sum"
        )
        errors.append(((da / size) - backprop).norm() / backprop.norm())
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-2


#: What the odd element of a and of b is drawn from.
ODD = {
    "NaN": ([torch.nan, 0.0, 1.5], [torch.nan, 0.0, -1.5]),
    "infinite a": ([torch.inf, -torch.inf], [0.0, 1.5, -60.0, 60.0]),
    "infinite b": ([0.0, 1.5, -60.0, 60.0, torch.inf, -torch.inf], [torch.inf, -torch.inf]),
    "huge": ([-1e4, 1e4, 0.0], [-1e4, 1e4, 60.0, 1e-3]),
}


@pytest.mark.parametrize("odd", ODD)
@pytest.mark.parametrize("loss", oracle.LOSSES)
@every_family
def test_patterns_follow_the_float64_reference(
    backend: str, family: str, loss: str, odd: str
) -> None:
    """Same places of NaN, +inf, -inf and finite numbers, for values and gradients."""
    a, b = (
        x.reshape(-1, 1)
        for x in torch.meshgrid(*(torch.tensor(values) for values in ODD[odd]), indexing="ij")
    )
    if family == "categorical":  # one odd logit beside three plain ones
        plain = torch.tensor([[0.5, -1.0, 2.0]]).expand(len(a), 3)
        a, b = (torch.cat((x, plain), -1) for x in (a, b))
    if family == "gaussian-diagonal":
        a, b = (torch.stack((x, 0.1 * x.clamp(-20, 20)), -2) for x in (a, b))
    got = evaluate(family, loss, a, b)
    with bk.use_backend("reference"):
        want = evaluate(family, loss, a.double(), b.double())
    for name, mine, reference in zip(("value", "da", "db"), got, want, strict=True):
        reference = reference.to(torch.float32)
        for test in (torch.isnan, torch.isposinf, torch.isneginf):
            wrong = test(mine) != test(reference)
            where = wrong.reshape(len(a), -1).any(-1).nonzero()[:4, 0].tolist()
            assert not wrong.any(), [
                (name, a[i].tolist(), b[i].tolist(), mine[i].tolist(), reference[i].tolist())
                for i in where
            ]


@natural_family
def test_everything_is_finite_up_to_sixty(backend: str, family: str) -> None:
    ends = torch.cat((torch.linspace(-60, 60, 61), torch.randn(20) * 1e-3))
    a, b = torch.meshgrid(ends, ends, indexing="ij")
    member = oracle.OracleFamily(family)
    if family == "categorical":
        pairs = [torch.stack((x, -x, 0.1 * x), -1).flatten(0, 1) for x in (a, b)]
    else:
        pairs = [a.reshape(-1, 1), b.reshape(-1, 1)]
    for loss in oracle.LOSSES:
        _, twin, options = pair_functions(loss)
        arguments = {"wrt": ("a", "b"), "reduction": "none", **options}
        value, (da, db) = twin(*pairs, package_family(member), **arguments)
        for x in (value, da, db):
            assert torch.isfinite(x).all()
        want = oracle.pair_loss(
            pairs[0].double(), pairs[1].double(), member, loss, reduction="none"
        )
        scale = oracle.term_scale(pairs[0].double(), pairs[1].double(), member, "evidence", 1.0)
        assert_close(value, want.detach(), scale=scale, floor=3e-6, noise=1e-6)
