"""Maps pooled and standardised in front of a loss, and back: a case without a loss of its own."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import bll_kernels as bk
from bench.gpu.cases import GATE, Case, relative_l2
from bench.gpu.forms import Inputs, Values, differentiated
from bench.traffic import standardized_map_bytes

GRID = 4


def _ours(x: Tensor, upstream: Tensor) -> Tensor:
    return (bk.grid_pool(x, "mean", GRID, standardize=True) * upstream).sum()


def _eager(x: Tensor, upstream: Tensor) -> Tensor:
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    cells = F.adaptive_avg_pool2d(x.to(accumulate), GRID)
    return (F.batch_norm(cells, None, None, training=True).flatten(1) * upstream).sum()


def _error(inputs: Inputs, outputs: Values) -> float:
    x, upstream = (t.detach().double().cpu() for t in inputs)
    x.requires_grad_()
    (want,) = torch.autograd.grad(_eager(x, upstream), x)
    return relative_l2(outputs[1].cpu(), want)


def _map(shape: tuple[int, ...], dtype: torch.dtype, last: bool, device: str) -> Case:
    layout = torch.channels_last if last else torch.contiguous_format
    cells = shape[0], shape[1] * GRID * GRID

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        upstream = torch.randn(cells, generator=generator, device=device)
        return x.to(memory_format=layout), upstream

    peers = {
        "eager": differentiated(_eager, 1),
        "compile": differentiated(torch.compile(_eager, dynamic=False), 1),
    }
    moved = standardized_map_bytes(
        torch.Size(shape).numel(), torch.Size(cells).numel(), dtype.itemsize
    )
    name = f"standardised {list(shape)} to {GRID} x {GRID} {'nhwc' if last else 'nchw'}"
    # Sums of thousands of float32 numbers stand behind every element.
    gate = 10 * GATE[dtype]
    quick = last and dtype == torch.bfloat16
    return Case(
        f"{name} {str(dtype)[6:]}",
        make,
        differentiated(_ours, 1),
        peers,
        moved,
        gate,
        _error,
        quick,
    )


def map_cases(device: str, tiny: bool) -> list[Case]:
    """Every case; ``tiny`` shrinks the shapes so that the driver can be tried anywhere."""
    shape = (4, 8, 8, 8) if tiny else (256, 64, 32, 32)
    return [
        _map(shape, dtype, last, device)
        for dtype in (torch.float32, torch.bfloat16)
        for last in (False, True)
    ]
