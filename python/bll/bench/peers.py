"""What a user would run instead, in plain PyTorch or in other libraries; all means over rows."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Normal, kl_divergence

from bll.bench.cases import Form, Inputs, Missing, Values

Value = Callable[[Tensor, Tensor], Tensor]


def _rows(a: Tensor) -> int:
    return a.numel() // a.shape[-1]


def formula(a: Tensor, b: Tensor, full: bool) -> Tensor:
    """Bernoulli KL(rho || alpha) in autograd operations; rho held constant unless full."""
    if full:
        r = a + b
        return (b * torch.sigmoid(r) - F.softplus(r) + F.softplus(a)).sum() / _rows(a)
    r = (a + b).detach()
    return ((r - a) * torch.sigmoid(r) - F.softplus(r) + F.softplus(a)).sum() / _rows(a)


def distributions(a: Tensor, b: Tensor, full: bool) -> Tensor:
    """The same through torch.distributions."""
    r = a + b if full else (a + b).detach()
    divergence = kl_divergence(
        Bernoulli(logits=r, validate_args=False), Bernoulli(logits=a, validate_args=False)
    )
    return divergence.sum() / _rows(a)


def bce_with_logits(a: Tensor, b: Tensor) -> Tensor:
    """The stopped Bernoulli KL as cross-entropy minus entropy of the posterior."""
    r = (a + b).detach()
    p = torch.sigmoid(r)
    cross = F.binary_cross_entropy_with_logits(a, p, reduction="sum")
    return (cross - F.binary_cross_entropy_with_logits(r, p, reduction="sum")) / _rows(a)


def one_graph(a: Tensor, b: Tensor, full: bool) -> Values:
    """Bernoulli value and gradients derived by hand, for a compiler to fuse; float32 inside."""
    rows = _rows(a)
    x, y = a.float(), b.float()
    r = x + y
    p, q = torch.sigmoid(r), torch.sigmoid(x)
    value = (y * p - F.softplus(r) + F.softplus(x)).sum() / rows
    if not full:
        return value, ((q - p) / rows).to(a.dtype)
    db = p * (1 - p) * y
    return value, ((db - p + q) / rows).to(a.dtype), (db / rows).to(b.dtype)


def bernoulli_evidence(a: Tensor, b: Tensor) -> Tensor:
    """-log E_alpha[beta] of Bernoulli latents."""
    return -(F.softplus(a + b) - F.softplus(a)).sum() / _rows(a)


def gaussian_kl(a: Tensor, b: Tensor) -> Tensor:
    """Unit-variance Gaussian latents, posterior held constant."""
    return ((a + b).detach() - a).square().sum() / 2 / _rows(a)


def gaussian_distributions(a: Tensor, b: Tensor) -> Tensor:
    """The same through torch.distributions."""
    one = torch.ones((), dtype=a.dtype, device=a.device)
    rho = Normal((a + b).detach(), one, validate_args=False)
    return kl_divergence(rho, Normal(a, one, validate_args=False)).sum() / _rows(a)


def gaussian_evidence(a: Tensor, b: Tensor) -> Tensor:
    """-log E_alpha[beta] of unit-variance Gaussian latents."""
    return -(((a + b).square() - a.square()) / 2).sum() / _rows(a)


def precision_kl(a: Tensor, b: Tensor) -> Tensor:
    """Latents N(a, 1), message N(b, 1), posterior N((a + b) / 2, 1 / 2) held constant."""
    mean = ((a + b) / 2).detach()
    value = ((mean - a).square() - 0.5 + math.log(2)).sum() / 2
    return value / _rows(a)


def precision_evidence(a: Tensor, b: Tensor) -> Tensor:
    """-log of the density N(b; a, 2)."""
    value = ((b - a).square() / 2 + math.log(4 * math.pi)).sum() / 2
    return value / _rows(a)


def _posterior(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    precision_a, precision_b = torch.exp(-a[..., 1, :]), torch.exp(-b[..., 1, :])
    variance = 1 / (precision_a + precision_b)
    return variance * (precision_a * a[..., 0, :] + precision_b * b[..., 0, :]), variance


def _diagonal_rows(a: Tensor) -> int:
    return a.numel() // a.shape[-1] // 2


def diagonal_kl(a: Tensor, b: Tensor) -> Tensor:
    """Gaussian latents (mean, log-variance), posterior held constant."""
    mean, variance = (x.detach() for x in _posterior(a, b))
    log_variance = a[..., 1, :]
    ratio = (variance + (mean - a[..., 0, :]).square()) * torch.exp(-log_variance)
    return (ratio - 1 + log_variance - torch.log(variance)).sum() / 2 / _diagonal_rows(a)


def diagonal_distributions(a: Tensor, b: Tensor) -> Tensor:
    """The same through torch.distributions."""
    mean, variance = (x.detach() for x in _posterior(a, b))
    alpha = Normal(a[..., 0, :], torch.exp(a[..., 1, :] / 2), validate_args=False)
    rho = Normal(mean, variance.sqrt(), validate_args=False)
    return kl_divergence(rho, alpha).sum() / _diagonal_rows(a)


def diagonal_evidence(a: Tensor, b: Tensor) -> Tensor:
    """-log of the density N(mean_b; mean_a, var_a + var_b)."""
    variance = torch.exp(a[..., 1, :]) + torch.exp(b[..., 1, :])
    square = (b[..., 0, :] - a[..., 0, :]).square() / variance
    return (square + torch.log(2 * math.pi * variance)).sum() / 2 / _diagonal_rows(a)


def categorical_kl(a: Tensor, b: Tensor) -> Tensor:
    """One categorical latent over the last dimension through F.kl_div, posterior held constant."""
    log_rho = F.log_softmax((a + b).detach(), -1)
    log_alpha = F.log_softmax(a, -1)
    return F.kl_div(log_alpha, log_rho, log_target=True, reduction="sum") / _rows(a)


def categorical_distributions(a: Tensor, b: Tensor) -> Tensor:
    """The same through torch.distributions."""
    rho = Categorical(logits=(a + b).detach(), validate_args=False)
    return kl_divergence(rho, Categorical(logits=a, validate_args=False)).sum() / _rows(a)


def categorical_evidence(a: Tensor, b: Tensor) -> Tensor:
    """-log E_alpha[beta] of a categorical latent."""
    return -(torch.logsumexp(a + b, -1) - torch.logsumexp(a, -1)).sum() / _rows(a)


def by_label(value: Value) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A pair loss whose message is looked up in a table."""

    def looked_up(a: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        return value(a, table[labels])

    return looked_up


def bernoulli_scores(a: Tensor, table: Tensor) -> Tensor:
    """Log-evidence of every class, [B, C], through the [B, C, D] tensor autograd needs."""
    return (F.softplus(a.unsqueeze(1) + table) - F.softplus(a).unsqueeze(1)).sum(-1)


def gaussian_scores(a: Tensor, table: Tensor) -> Tensor:
    """A(a + b) - A(a) = a b + b^2 / 2."""
    return F.linear(a, table) + table.square().sum(1) / 2


def pooled_linear(x: Tensor, weight: Tensor) -> Tensor:
    """A linear classifier on a 4x4 grid of means."""
    return F.linear(F.adaptive_avg_pool2d(x, 4).flatten(1), weight)


def cross_entropy_of(scores: Value) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Cross-entropy of class scores."""

    def value(a: Tensor, table: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(scores(a, table), labels)

    return value


def imported(package: str, wanted: str) -> Any:
    """An attribute of an optional package.

    Raises:
        Missing: The package is not installed, cannot be imported here, or lacks the attribute.
    """
    try:
        return getattr(importlib.import_module(package), wanted)
    except ImportError as error:
        raise Missing(f"{package.split('.')[0]} is not installed: {error}") from error
    # What a package does at import without the hardware it is for is not ours to foresee.
    except Exception as error:
        raise Missing(f"{package}: {type(error).__name__}: {error}") from error


def needs_gpu(inputs: Inputs, name: str) -> None:
    """Raises `Missing` for CPU tensors."""
    if not inputs[0].is_cuda:
        raise Missing(f"{name} needs a GPU")


def liger_kl(inputs: Inputs) -> Values:
    """Liger-Kernel's KL divergence with the softmaxes around it. Not yet shown on a GPU."""
    needs_gpu(inputs, "Liger-Kernel")
    loss = imported("liger_kernel.transformers", "LigerKLDIVLoss")(reduction="batchmean")
    a, b = inputs
    leaf = a.detach().requires_grad_()
    value = loss(F.log_softmax(leaf, -1), F.softmax((a + b), -1))
    return (value.detach(), *torch.autograd.grad(value, leaf))


def liger_linear(inputs: Inputs) -> Values:
    """Liger-Kernel's fused linear cross-entropy. Not yet shown on a GPU."""
    needs_gpu(inputs, "Liger-Kernel")
    loss = imported("liger_kernel.transformers", "LigerFusedLinearCrossEntropyLoss")()
    x, weight = (t.detach().requires_grad_() for t in inputs[:2])
    value = loss(weight, x, inputs[2])
    return (value.detach(), *torch.autograd.grad(value, (x, weight)))


def cut_cross_entropy(inputs: Inputs) -> Values:
    """Apple's cut cross-entropy, for half types. Not yet shown on a GPU."""
    needs_gpu(inputs, "cut-cross-entropy")
    loss = imported("cut_cross_entropy", "linear_cross_entropy")
    x, weight = (t.detach().requires_grad_() for t in inputs[:2])
    value = loss(x, weight, inputs[2])
    return (value.detach(), *torch.autograd.grad(value, (x, weight)))


LINEAR_LIBRARIES: dict[str, Form] = {
    "Liger-Kernel": liger_linear,
    "cut-cross-entropy": cut_cross_entropy,
}
