"""What every function must return, in float64, by autograd of the log-partition alone.

Nothing here is shared with the package: a family is its natural parameters and ``A``. Values are
the generic identities of an exponential family, gradients are torch's autograd of those values
with rho detached where a loss holds it constant.

Inside, natural parameters are ``[..., n, P]``: ``n`` independent latents (or groups), ``P``
parameters each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FAMILIES = ("bernoulli", "gaussian", "gaussian-precision", "gaussian-diagonal", "categorical")
LOSSES = ("kl", "kl_full", "reverse_kl", "reverse_kl_full", "evidence")
STOPPED = ("kl", "reverse_kl")


@dataclass(frozen=True)
class OracleFamily:
    """A family by name with its options; ``group=None`` is one group over all latents."""

    name: str
    tau: float = 1.0
    group: int | None = None

    @property
    def planes(self) -> int:
        return 2 if self.name == "gaussian-diagonal" else 1

    @property
    def density(self) -> bool:
        """Whether beta is a density over z (so its log-partition is part of the evidence)."""
        return self.name in ("gaussian-precision", "gaussian-diagonal")

    def alpha(self, a: Tensor) -> Tensor:
        if self.name == "gaussian-precision":
            return torch.stack((a, torch.full_like(a, -0.5)), -1)
        return self._natural(a)

    def beta(self, b: Tensor, tilt: float) -> Tensor:
        if self.name == "gaussian-precision":
            tau = self.tau * tilt
            return torch.stack((tau * b, torch.full_like(b, -0.5 * tau)), -1)
        if self.name == "gaussian-diagonal":
            mean, logvar = b.unbind(-2)
            return self._natural(torch.stack((mean, logvar - math.log(tilt)), -2))
        return self._natural(b) * tilt

    def _natural(self, x: Tensor) -> Tensor:
        if self.name == "gaussian-diagonal":
            mean, logvar = x.unbind(-2)
            precision = torch.exp(-logvar)
            return torch.stack((mean * precision, -0.5 * precision), -1)
        if self.name == "categorical" and x.shape[-1]:
            return x.unflatten(-1, (-1, self.group or x.shape[-1]))
        return x.unsqueeze(-1)

    def log_partition(self, eta: Tensor) -> Tensor:
        """``A`` of ``[..., n, P]`` natural parameters, ``[..., n]``."""
        if self.density:
            return -(eta[..., 0] ** 2) / (4 * eta[..., 1]) + 0.5 * torch.log(math.pi / -eta[..., 1])
        if self.name == "gaussian":
            return 0.5 * eta[..., 0] ** 2
        if self.name == "categorical":
            return torch.logsumexp(eta, -1)
        return F.softplus(eta[..., 0], threshold=40.0)

    def mean(self, eta: Tensor) -> Tensor:
        """Expected sufficient statistics ``A'``, differentiable."""
        with torch.enable_grad():
            point = eta if eta.requires_grad else eta.detach().requires_grad_()
            (mu,) = torch.autograd.grad(self.log_partition(point).sum(), point, create_graph=True)
        return mu


def bregman(family: OracleFamily, p: Tensor, q: Tensor) -> Tensor:
    """KL(EF(p) || EF(q)) per latent."""
    slope = ((p - q) * family.mean(p)).sum(-1)
    return slope - family.log_partition(p) + family.log_partition(q)


def pair_terms(a: Tensor, b: Tensor, family: OracleFamily, loss: str, tilt: float = 1.0) -> Tensor:
    """Loss of every latent (or group), ``[*batch, n]``; ``b`` has the shape of ``a``."""
    alpha, beta = family.alpha(a), family.beta(b, tilt)
    rho = alpha + beta
    if loss == "evidence":
        message = family.log_partition(beta) if family.density else 0.0
        return family.log_partition(alpha) + message - family.log_partition(rho)
    if loss in STOPPED:
        rho = rho.detach()
    if loss.startswith("reverse"):
        return bregman(family, alpha, rho)
    return bregman(family, rho, alpha)


def term_scale(a: Tensor, b: Tensor, family: OracleFamily, loss: str, tilt: float) -> Tensor:
    """Size of what is added up per row: rounding errors are measured against it."""
    with torch.no_grad():
        terms = pair_terms(a, b, family, loss, tilt).abs()
        if loss == "evidence":
            alpha, beta = family.alpha(a), family.beta(b, tilt)
            means = family.mean(alpha).abs() + family.mean(alpha + beta).abs()
            terms = terms + (beta.abs() * means).sum(-1)
    return terms.sum(-1)


def noise(
    a: Tensor, b: Tensor, family: OracleFamily, tilt: float = 1.0, per_latent: bool = False
) -> float:
    """Bound on the oracle's own rounding error: it subtracts log-partitions in float64."""
    if not a.numel():
        return 0.0
    with torch.no_grad():
        alpha, beta = family.alpha(a), family.beta(b, tilt)
        size = sum(family.log_partition(x).abs() for x in (alpha, alpha + beta))
        size = size + (alpha.abs() + beta.abs()).sum(-1)
        size = size + (beta * family.mean(alpha + beta)).abs().sum(-1)
    size = size if per_latent else size.sum(-1)
    return 16 * torch.finfo(torch.float64).eps * (1 + size.max().item())


def reduce(rows: Tensor, reduction: str, weight: Tensor | None = None) -> Tensor:
    """Rows of values -> the reduced value; batchmean divides by the number of rows."""
    if weight is not None:
        rows = rows * weight
    if reduction == "none":
        return rows
    total = rows.sum()
    return total / max(rows.numel(), 1) if reduction == "batchmean" else total


def gather(b: Tensor, labels: Tensor | None, shape: torch.Size) -> Tensor:
    """The message as dense as ``a``: rows of a class table, or a broadcast view."""
    return b.expand(shape) if labels is None else b[labels.long()]


def pair_loss(
    a: Tensor,
    b: Tensor,
    family: OracleFamily,
    loss: str,
    *,
    labels: Tensor | None = None,
    pool: tuple[str, int] | None = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """posterior_kl (four losses) and evidence_loss, differentiable in float64 ``a`` and ``b``."""
    a = grid_pool(a, *pool) if pool else a
    terms = pair_terms(a, gather(b, labels, a.shape), family, loss, tilt)
    return reduce(terms.sum(-1), reduction, weight)


def pair_scale(
    a: Tensor,
    b: Tensor,
    family: OracleFamily,
    loss: str,
    *,
    labels: Tensor | None = None,
    pool: tuple[str, int] | None = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """Scale of the value of :func:`pair_loss`, in its shape."""
    a = grid_pool(a, *pool) if pool else a
    rows = term_scale(a, gather(b, labels, a.shape), family, loss, tilt)
    return reduce(rows, reduction, None if weight is None else weight.abs())


def class_scores(
    a: Tensor,
    table: Tensor,
    family: OracleFamily,
    bias: Tensor | None = None,
    normalize_message: bool = False,
    tilt: float = 1.0,
) -> Tensor:
    """Log-evidence of every class, ``[*batch, C]``."""
    alpha = family.alpha(a).unsqueeze(-3)
    beta = family.beta(table, tilt)
    terms = family.log_partition(alpha + beta) - family.log_partition(alpha)
    if normalize_message or family.density:
        terms = terms - family.log_partition(beta)
    scores = terms.sum(-1)
    return scores if bias is None else scores + bias


def class_loss(
    a: Tensor,
    table: Tensor,
    labels: Tensor,
    family: OracleFamily,
    *,
    bias: Tensor | None = None,
    normalize_message: bool = False,
    pool: tuple[str, int] | None = None,
    tilt: float = 1.0,
    weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """class_evidence_loss."""
    a = grid_pool(a, *pool) if pool else a
    scores = class_scores(a, table, family, bias, normalize_message, tilt)
    rows = -torch.log_softmax(scores, -1).gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    return reduce(rows, reduction, weight)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    labels: Tensor,
    *,
    bias: Tensor | None = None,
    pool: tuple[str, int] | None = None,
    sample_weight: Tensor | None = None,
    reduction: str = "batchmean",
) -> Tensor:
    """A linear read-out and its cross-entropy."""
    x = grid_pool(x, *pool) if pool else x
    logits = torch.log_softmax(F.linear(x, weight, bias), -1)
    rows = -logits.gather(-1, labels.long().unsqueeze(-1)).squeeze(-1)
    return reduce(rows, reduction, sample_weight)


def _cell_std(cell: Tensor) -> Tensor:
    if cell.shape[-1] * cell.shape[-2] < 2:
        return cell.sum((-2, -1)) * 0.0
    variance = cell.var((-2, -1), unbiased=True)
    moving = variance > 0
    return torch.where(moving, torch.where(moving, variance, 1.0).sqrt(), 0.0)


def grid_pool(x: Tensor, kind: str, grid: int) -> Tensor:
    """Pools a map ``[B, C, H, W]`` to ``[B, C * grid * grid]``."""
    if kind == "mean":
        return F.adaptive_avg_pool2d(x, grid).flatten(1)
    if kind == "max":
        return F.adaptive_max_pool2d(x, grid).flatten(1)
    height, width = x.shape[-2:]
    cells = [
        _cell_std(
            x[
                :,
                :,
                i * height // grid : -(-(i + 1) * height // grid),
                j * width // grid : -(-(j + 1) * width // grid),
            ]
        )
        for i in range(grid)
        for j in range(grid)
    ]
    return torch.stack(cells, -1).flatten(1)


def standardize(x: Tensor) -> Tensor:
    """Channels of [B, C, ...] with mean 0 and variance 1 over everything else."""
    others = (0, *range(2, x.dim()))
    mean = x.mean(others, keepdim=True)
    variance = ((x - mean) ** 2).mean(others, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt()
