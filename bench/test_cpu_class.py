"""``class_evidence_loss`` against eager autograd and against a linear classifier."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from measure import Goal, Record, peak_extra_bytes
from peers import Values, bernoulli_scores, class_step, pooled_linear
from torch import Tensor
from traffic import class_bytes, linear_class_flops, pooled_class_bytes

import bll_kernels as bk

BATCH, LATENTS = 128, 4096
CLASS_COUNTS = [10, 100]
GATE = 2e-5


def inputs(quick: bool, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features, a table of the scale that trains, and labels."""
    torch.manual_seed(0)
    batch, latents = (8, 32) if quick else (BATCH, LATENTS)
    table = torch.randn(classes, latents) / latents**0.5
    return torch.randn(batch, latents), table, torch.randint(classes, (batch,))


def gate(got: Values, peer: Callable[[], Values]) -> float:
    """Largest relative L2 error of the results against the peer in float64."""
    want = peer()
    errors = [((x.double() - y).norm() / y.norm()).item() for x, y in zip(got, want, strict=True)]
    assert max(errors) <= GATE, errors
    return max(errors)


@pytest.mark.parametrize("classes", CLASS_COUNTS)
def test_bernoulli(report: Callable[..., Record], quick: bool, classes: int) -> None:
    """Against autograd through the [B, C, D] tensor, which must not exist here."""
    a, table, labels = inputs(quick, classes)

    def ours() -> Values:
        value, grads = bk.class_evidence_loss_value_and_grad(
            a, table, labels, "bernoulli", wrt=("a", "table")
        )
        return (value, *grads)

    error = gate(ours(), class_step(bernoulli_scores, a.double(), table.double(), labels))
    peers = {"eager autograd": class_step(bernoulli_scores, a, table, labels)}
    if not quick:
        torch._dynamo.reset()
        compiled = torch.compile(bernoulli_scores, dynamic=False)
        peers["compiled autograd"] = class_step(compiled, a, table, labels)
    extra = peak_extra_bytes(ours)
    dense = a.numel() * classes * a.element_size()
    if not quick:
        assert extra < dense / 2, (extra, dense)
    report(
        f"class_evidence_loss bernoulli {list(a.shape)} x {classes}",
        ours,
        peers,
        [Goal("eager autograd", 5.0)],
        moved_bytes=class_bytes(a.numel(), a.element_size()),
        errors={"ours": error},
        notes=f"peak memory +{extra / 1e6:.1f} MB ([B, C, D] is {dense / 1e6:.0f} MB)",
    )


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("function", ["class_evidence_loss", "linear_cross_entropy"])
def test_gaussian(report: Callable[..., Record], quick: bool, classes: int, function: str) -> None:
    """Against the linear classifier that it equals."""
    a, table, labels = inputs(quick, classes)

    def ours() -> Values:
        if function == "linear_cross_entropy":
            value, grads = bk.linear_cross_entropy_value_and_grad(
                a, table, labels, wrt=("x", "weight")
            )
        else:
            value, grads = bk.class_evidence_loss_value_and_grad(
                a, table, labels, "gaussian", normalize_message=True, wrt=("a", "table")
            )
        return (value, *grads)

    error = gate(ours(), class_step(F.linear, a.double(), table.double(), labels))
    report(
        f"{function} gaussian {list(a.shape)} x {classes}",
        ours,
        {"linear + cross_entropy": class_step(F.linear, a, table, labels)},
        [Goal("linear + cross_entropy", 1.0)],
        moved_bytes=class_bytes(a.numel(), a.element_size()),
        flops=linear_class_flops(*a.shape, classes),
        errors={"ours": error},
    )


@pytest.mark.parametrize("classes", CLASS_COUNTS)
@pytest.mark.parametrize("memory", ["nchw", "nhwc"])
def test_pooled_gaussian(
    report: Callable[..., Record], quick: bool, classes: int, memory: str
) -> None:
    """A map pooled to a 4x4 grid first; the gradient is that of the full map."""
    channels, side = (2, 8) if quick else (LATENTS // 16, 16)
    a, table, labels = inputs(quick, classes)
    layout = torch.channels_last if memory == "nhwc" else torch.contiguous_format
    x = torch.randn(len(a), channels, side, side).to(memory_format=layout)

    def ours() -> Values:
        value, grads = bk.linear_cross_entropy_value_and_grad(
            x, table, labels, pool=("mean", 4), wrt=("x", "weight")
        )
        return (value, *grads)

    error = gate(ours(), class_step(pooled_linear, x.double(), table.double(), labels))
    report(
        f"linear_cross_entropy on a 4x4 mean grid of {list(x.shape)} {memory} x {classes}",
        ours,
        {"pool + linear + cross_entropy": class_step(pooled_linear, x, table, labels)},
        [Goal("pool + linear + cross_entropy", 1.5)],
        moved_bytes=pooled_class_bytes(x.numel(), x.element_size()),
        flops=linear_class_flops(*a.shape, classes),
        errors={"ours": error},
    )
