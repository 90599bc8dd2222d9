"""Compiled and eager gradients of every function, over several batch sizes.

A custom autograd.Function may be compiled to something that is silently wrong, so every gradient
is compared on its own, with an upstream gradient that is not one, for each choice of leaves.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import bll_kernels as bk

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

CLASSES, WIDTH = 4, 12
BATCHES = (8, 5, 12, 3, 16)

#: Of rows x, a table with one row per class, and labels; one value per row.
LOSSES: dict[str, Loss] = {
    "stopped kl": lambda x, t, y: bk.posterior_kl(x, t, "bernoulli", labels=y, reduction="none"),
    "full kl": lambda x, t, y: bk.posterior_kl(
        x, t, "bernoulli", labels=y, stop_posterior=False, reduction="none"
    ),
    "reverse kl": lambda x, t, y: bk.posterior_kl(
        x, t[0], "gaussian-precision", direction="alpha_rho", stop_posterior=False, reduction="none"
    ),
    "evidence": lambda x, t, y: bk.evidence_loss(x, t, "categorical", labels=y, reduction="none"),
    "class evidence": lambda x, t, y: bk.class_evidence_loss(
        x, t, y, "bernoulli", normalize_message=True, reduction="none"
    ),
    "linear": lambda x, t, y: bk.linear_cross_entropy(x, t, y, reduction="none"),
    "gram": lambda x, t, y: bk.gram_loss(x, y, num_classes=CLASSES, reduction="none"),
    "means": lambda x, t, y: (bk.class_means(x, y, CLASSES)[0] * t).sum(1),
}
#: Whose gradients are asked for. A stopped loss sends none to the table, gram has no table.
LEAVES = {"x": (True, False), "table": (False, True), "both": (True, True)}


def gradients(loss: Loss, x: Tensor, table: Tensor, labels: Tensor, leaves: str) -> list[Tensor]:
    operands = [
        operand.clone().requires_grad_(wanted)
        for operand, wanted in zip((x, table), LEAVES[leaves], strict=True)
    ]
    value = loss(*operands, labels)
    upstream = torch.linspace(-1.5, 2, value.numel()).reshape(value.shape)
    wanted = [operand for operand in operands if operand.requires_grad]
    found = torch.autograd.grad(value, wanted, upstream, materialize_grads=True)
    return [value.detach(), *found]


def compare(name: str, leaves: str, compiler: str) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(LOSSES[name], backend=compiler, fullgraph=True)
    nonzero = False
    for batch in BATCHES:
        generator = torch.Generator().manual_seed(batch)
        x = torch.randn(batch, WIDTH, generator=generator)
        table = torch.randn(CLASSES, WIDTH, generator=generator)
        labels = torch.randint(CLASSES, (batch,), generator=generator)
        got, want = (gradients(loss, x, table, labels, leaves) for loss in (compiled, LOSSES[name]))
        torch.testing.assert_close(got, want, msg=lambda text, n=batch: f"batch {n}: {text}")
        nonzero = nonzero or all(bool(gradient.any()) for gradient in want[1:])
    silent = leaves != "x" and name in ("stopped kl", "gram")
    assert nonzero or silent
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("leaves", LEAVES)
@pytest.mark.parametrize("name", LOSSES)
def test_traced_gradients(backend: str, name: str, leaves: str) -> None:
    if name in ("stopped kl", "gram") and leaves == "table":
        pytest.skip("this loss has no gradient to the table")
    compare(name, leaves, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_compiled_gradients(backend: str, name: str) -> None:
    compare(name, "both", "inductor")
