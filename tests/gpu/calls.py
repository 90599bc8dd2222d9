"""One call of each kind of kernel on CUDA tensors, as a function of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import bll_kernels as bk
from bll_kernels.families import FORMULAS
from bll_kernels.ops import op

Values = tuple[Tensor, ...]


@dataclass(frozen=True)
class Call:
    """``run(*inputs)`` returns a value and gradients."""

    name: str
    inputs: tuple[Tensor, ...]
    run: Callable[..., Values]


def _latents(family: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    shape = (rows, 2, width) if FORMULAS[family].planes == 2 else (rows, width)
    return torch.randn(shape, device="cuda").to(dtype)


def pair(family: str, rows: int, width: int, dtype: torch.dtype, labelled: bool) -> Call:
    """A full KL with both gradients, dense or by label."""
    a = _latents(family, rows, width, dtype)
    b = _latents(family, 7 if labelled else rows, width, dtype)
    labels = torch.randint(7, (rows,), device="cuda")

    def run(a: Tensor, b: Tensor, labels: Tensor) -> Values:
        value, grads = bk.posterior_kl_value_and_grad(
            a,
            b,
            family,
            labels=labels if labelled else None,
            stop_posterior=False,
            wrt=("a", "b"),
        )
        return (value, *grads)

    return Call(f"pair {family} {'by label' if labelled else 'dense'}", (a, b, labels), run)


def classes(family: str, rows: int, width: int, dtype: torch.dtype) -> Call:
    """Class-normalised evidence with both gradients."""
    a, table = _latents(family, rows, width, dtype), _latents(family, 11, width, dtype)
    labels = torch.randint(11, (rows,), device="cuda")

    def run(a: Tensor, table: Tensor, labels: Tensor) -> Values:
        value, grads = bk.class_evidence_loss_value_and_grad(
            a, table, labels, family, wrt=("a", "table")
        )
        return (value, *grads)

    return Call(f"class {family}", (a, table, labels), run)


def pooled(kind: str, dtype: torch.dtype, channels_last: bool) -> Call:
    """The default training form: a pooled map, a Gaussian class loss, the gradient on the map."""
    maps = torch.randn(9, 16, 7, 7, device="cuda").to(dtype)
    if channels_last:
        maps = maps.to(memory_format=torch.channels_last)
    table = torch.randn(11, 64, device="cuda").to(dtype)
    labels = torch.randint(11, (9,), device="cuda")

    def run(maps: Tensor, table: Tensor, labels: Tensor) -> Values:
        value, grads = bk.class_evidence_loss_value_and_grad(
            maps, table, labels, "gaussian", pool=(kind, 2), wrt=("a", "table")
        )
        return (value, *grads)

    return Call(f"pooled {kind}", (maps, table, labels), run)


def many_classes(dtype: torch.dtype) -> Call:
    """A linear read-out of more classes than one kernel takes: through matmul in chunks."""
    x = torch.randn(33, 64, device="cuda").to(dtype)
    weight = torch.randn(1500, 64, device="cuda").to(dtype)
    labels = torch.randint(1500, (33,), device="cuda")

    def run(x: Tensor, weight: Tensor, labels: Tensor) -> Values:
        value, grads = bk.linear_cross_entropy_value_and_grad(
            x, weight, labels, wrt=("x", "weight")
        )
        return (value, *grads)

    return Call("linear cross-entropy x 1500", (x, weight, labels), run)


def gram(dtype: torch.dtype) -> Call:
    """Similarities of all pairs of rows against those of their labels."""
    x, labels = torch.randn(130, 70, device="cuda").to(dtype), torch.arange(130, device="cuda") % 7

    def run(x: Tensor, labels: Tensor) -> Values:
        value, grads = bk.gram_loss_value_and_grad(x, labels, num_classes=7)
        return (value, *grads)

    return Call("gram", (x, labels), run)


def means(dtype: torch.dtype) -> Call:
    """Means of the rows of every class, and their numbers."""
    x, labels = torch.randn(300, 72, device="cuda").to(dtype), torch.arange(300, device="cuda") % 7
    return Call("class means", (x, labels), lambda x, labels: bk.class_means(x, labels, 8))


def standardized(backend: str, dtype: torch.dtype) -> Call:
    """Channels of a pooled map, and of rows long enough for sections, with their gradients."""
    x = torch.randn(9, 5, 8, 8, device="cuda").to(dtype)
    rows = torch.randn(2100, 40, device="cuda")

    def run(x: Tensor, rows: Tensor) -> Values:
        found: list[Tensor] = []
        for given, channels in ((op(backend, "grid_pool")(x, "mean", 2), 5), (rows, 40)):
            value, scale = op(backend, "standardize_channels")(given, channels, 1e-5)
            grad = op(backend, "standardize_channels_backward")(value.square(), value, scale)
            found += [value, scale, grad]
        return tuple(found)

    return Call("standardised", (x, rows), run)


def every_call(backend: str, dtype: torch.dtype = torch.float32) -> list[Call]:
    """All that a backend has kernels for."""
    found = [pair(f, 65, 300, dtype, labelled) for f in FORMULAS for labelled in (False, True)]
    found += [classes(f, 33, 300, dtype) for f in FORMULAS]
    found += [
        pooled(kind, dtype, last) for kind in ("mean", "max", "std") for last in (False, True)
    ]
    found += [many_classes(dtype), gram(dtype), means(dtype), standardized(backend, dtype)]
    return [call for call in found if _served(call)]


def _served(call: Call) -> bool:
    try:
        call.run(*call.inputs)
    except RuntimeError as error:
        if "has no CUDA kernel" not in str(error):
            raise
        return False
    return True
