"""``gram_loss`` and ``class_means`` against eager autograd."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import Goal, Record, peak_extra_bytes
from peers import Values
from torch import Tensor
from traffic import gram_bytes, means_bytes

import bll_kernels as bk

CLASSES = 10
GATE = 2e-5


def relative_errors(got: Values, want: Values) -> float:
    """Largest relative L2 error of the results."""
    errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(got, want, strict=True)]
    assert max(errors) <= GATE, errors
    return max(errors)


def cosine_gram(x: Tensor) -> Tensor:
    """Centred rows, divided by their norms, and all their products."""
    x = x - x.mean(1, keepdim=True)
    unit = F.normalize(x, dim=1)
    return unit @ unit.t()


def similarity_step(x: Tensor, target: Tensor) -> Callable[[], Values]:
    """Similarity matching in eager PyTorch: the loss and its gradient."""

    def step() -> Values:
        leaf = x.detach().requires_grad_()
        value = F.mse_loss(cosine_gram(leaf), target)
        return (value.detach(), *torch.autograd.grad(value, leaf))

    return step


@pytest.mark.parametrize("shape", [(128, 256), (128, 4096), (256, 1024), (1024, 256)], ids=str)
def test_gram(report: Callable[..., Record], quick: bool, shape: tuple[int, int]) -> None:
    """Labels as the target. The flops counted are ours: the products, and their pull."""
    torch.manual_seed(0)
    batch, latents = (16, 32) if quick else shape
    x, labels = torch.randn(batch, latents), torch.randint(CLASSES, (batch,))
    target = cosine_gram(F.one_hot(labels, CLASSES).double())

    def ours() -> Values:
        value, grads = bk.gram_loss_value_and_grad(x, labels, num_classes=CLASSES)
        return (value, *grads)

    def through_autograd() -> Values:
        leaf = x.detach().requires_grad_()
        value = bk.gram_loss(leaf, labels, num_classes=CLASSES)
        return (value.detach(), *torch.autograd.grad(value, leaf))

    error = relative_errors(ours(), similarity_step(x.double(), target)())
    peers = {
        "eager autograd": similarity_step(x, target.float()),
        "ours through autograd": through_autograd,
    }
    report(
        f"gram_loss {[batch, latents]}",
        ours,
        peers,
        [Goal("eager autograd", 1.0)],
        moved_bytes=gram_bytes(*x.shape, x.element_size()),
        flops=4 * batch * batch * latents,
        errors={"ours": error},
        notes=f"peak memory +{peak_extra_bytes(ours) / 1e6:.1f} MB",
    )


@pytest.mark.parametrize("classes", [10, 1000])
def test_means(report: Callable[..., Record], quick: bool, classes: int) -> None:
    """Against the product with one-hot labels, and against index_add_."""
    torch.manual_seed(0)
    batch, latents = (16, 32) if quick else (128, 4096)
    x, labels = torch.randn(batch, latents), torch.randint(classes, (batch,))

    def one_hot(samples: Tensor) -> Tensor:
        rows = F.one_hot(labels, classes).to(samples.dtype)
        return rows.t() @ samples / rows.sum(0).clamp_min(1)[:, None]

    def index_add() -> Tensor:
        sums = torch.zeros(classes, latents).index_add_(0, labels, x)
        return sums / torch.bincount(labels, minlength=classes).clamp_min(1)[:, None]

    means, _ = bk.class_means(x, labels, classes)
    report(
        f"class_means {[batch, latents]} x {classes}",
        lambda: bk.class_means(x, labels, classes),
        {"one-hot product": lambda: one_hot(x), "index_add_": index_add},
        [Goal("one-hot product", 1.0)],
        moved_bytes=means_bytes(*x.shape, len(means), x.element_size()),
        errors={"ours": relative_errors((means,), (one_hot(x.double()),))},
    )
