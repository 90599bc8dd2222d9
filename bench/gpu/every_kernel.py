"""One call of every kernel on small tensors, for compute-sanitizer.

python -m bench.gpu.every_kernel native|triton [--quick]
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

import bll_kernels as bk
from bll_kernels.families import FORMULAS
from bll_kernels.optim import BlockAdam, BlockSGD

DTYPES = (torch.float32, torch.bfloat16)


def latents(family: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    """Parameters of a family."""
    shape = (rows, 2, width) if FORMULAS[family].planes == 2 else (rows, width)
    return torch.randn(shape, device="cuda").to(dtype)


def pair_calls(family: str, dtype: torch.dtype) -> Iterator[str]:
    """Dense and by label, aligned and not, every loss."""
    for width in (64, 333):
        a, b = (latents(family, 9, width, dtype) for _ in range(2))
        labels = torch.randint(5, (9,), device="cuda")
        for stop in (True, False):
            for direction in ("rho_alpha", "alpha_rho"):
                bk.posterior_kl_value_and_grad(
                    a, b, family, stop_posterior=stop, direction=direction, wrt=("a", "b")
                )
        bk.evidence_loss_value_and_grad(a, b[:5], family, labels=labels, wrt=("a", "b"))
        for next_dtype in (dtype, torch.float8_e4m3fn):
            bk.evidence_loss_value_and_grad(a, b, family, next_input=0.5, next_dtype=next_dtype)
        yield f"pair {family} {width} {dtype}"


def class_calls(family: str, dtype: torch.dtype) -> Iterator[str]:
    """Small and larger heads."""
    for classes in (3, 130):
        a, table = latents(family, 9, 60, dtype), latents(family, classes, 60, dtype)
        labels = torch.randint(classes, (9,), device="cuda")
        bk.class_evidence_loss_value_and_grad(a, table, labels, family, wrt=("a", "table"))
        yield f"class {family} {classes} {dtype}"


def map_calls(dtype: torch.dtype) -> Iterator[str]:
    """Pooled maps of both layouts."""
    for layout in (torch.contiguous_format, torch.channels_last):
        maps = torch.randn(3, 8, 7, 6, device="cuda").to(dtype).to(memory_format=layout)
        for kind in ("mean", "max", "std"):
            leaf = maps.detach().requires_grad_()
            bk.grid_pool(leaf, kind, 2).sum().backward()
            yield f"pool {kind} {dtype}"
        leaf = maps.detach().requires_grad_()
        bk.grid_pool(leaf, "mean", 2, standardize=True).square().sum().backward()
        yield f"standardised pool {dtype}"
        for grid in (1, 2, 3):
            table, labels = latents("gaussian", 5, 8 * grid * grid, dtype), torch.arange(3).cuda()
            for compact in (False, True):
                bk.class_evidence_loss_value_and_grad(
                    maps, table, labels, "gaussian", pool=("mean", grid), wrt=("a", "table"),
                    compact_grad=compact,
                )  # fmt: skip
            yield f"pooled class {grid} {dtype}"


def batch_calls(dtype: torch.dtype) -> Iterator[str]:
    """Losses over pairs of rows, and class means."""
    x, labels = torch.randn(37, 50, device="cuda").to(dtype), torch.arange(37, device="cuda") % 4
    bk.gram_loss_value_and_grad(x, labels, num_classes=4)
    bk.gram_loss_value_and_grad(x, torch.randn(37, 9, device="cuda").to(dtype))
    leaf = x.detach().requires_grad_()
    bk.class_means(leaf, labels, 4)[0].sum().backward()
    # More rows than one block takes.
    leaf = torch.randn(2100, 40, device="cuda").to(dtype).requires_grad_()
    bk.standardize_channels(leaf).square().sum().backward()
    yield f"batch {dtype}"


def step_calls(dtype: torch.dtype) -> Iterator[str]:
    """Optimiser steps with and without the finite check; a loss of many classes."""
    found, scale = torch.zeros(1, device="cuda"), torch.ones((), device="cuda")
    for make in (BlockAdam, partial(BlockSGD, momentum=0.9), BlockSGD):
        leaves = [torch.randn(n, device="cuda").to(dtype).requires_grad_() for n in (9001, 3)]
        for x in leaves:
            x.grad = torch.ones_like(x)
        optimizer = make(leaves, lr=0.1)
        optimizer.step_block(0)
        optimizer.step_block(0, inverse_scale=scale, found_inf=found)
        yield f"step {make} {dtype}"
    x, labels = torch.randn(5, 16, device="cuda").to(dtype), torch.arange(5, device="cuda")
    for classes in (1025, 2052):
        weight = torch.randn(classes, 16, device="cuda").to(dtype)
        bk.linear_cross_entropy_value_and_grad(x, weight, labels, wrt=("x", "weight"))
        yield f"classes through matmul {classes} {dtype}"


def main(backend: str, dtypes: Sequence[torch.dtype] = DTYPES) -> int:
    """Calls everything that a backend has kernels for; returns how many calls came through."""
    through = 0
    for dtype in dtypes:
        calls = [call for family in FORMULAS for call in (pair_calls(family, dtype),)]
        calls += [class_calls(family, dtype) for family in FORMULAS]
        calls += [map_calls(dtype), batch_calls(dtype), step_calls(dtype)]
        for call in calls:
            try:
                with bk.use_backend(backend):
                    for name in call:
                        torch.cuda.synchronize()
                        print(f"called {name}", flush=True)
                        through += 1
            except RuntimeError as error:
                if "has no CUDA kernel" not in str(error):
                    raise
                print(f"left out: {error}", flush=True)
    print(f"{through} calls of {backend}", flush=True)
    return through


if __name__ == "__main__":
    main(sys.argv[1], DTYPES[:1] if "--quick" in sys.argv[2:] else DTYPES)
