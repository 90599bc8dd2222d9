"""Optimiser steps of a block, and class means: cases that no autograd stands behind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

import bll_kernels as bk
from bench.cuda_traffic import optimizer_step
from bench.gpu.cases import CLASS_GATE, GATE, Case, relative_l2
from bench.gpu.forms import Form, Inputs, Values
from bench.traffic import means_bytes
from bll_kernels.optim import BlockAdam

RATE, EPS = 1e-2, 1e-8
Step = Callable[[], object]


def _stepping(make: Callable[[list[Tensor]], Step]) -> Form:
    """One step of the optimiser of these inputs, made when it is first asked for."""
    # Gone with the inputs, which the next backend or case has others of.
    steps = WeakTensorKeyDictionary()

    def form(inputs: Inputs) -> Values:
        third = len(inputs) // 3
        if inputs[0] not in steps:
            parameters = [x.detach().requires_grad_() for x in inputs[:third]]
            for parameter, gradient in zip(parameters, inputs[third:], strict=False):
                parameter.grad = gradient
            steps[inputs[0]] = make(parameters)
        steps[inputs[0]]()
        return inputs[:third]

    return form


def _ours(parameters: list[Tensor]) -> Step:
    return partial(BlockAdam(parameters, lr=RATE, eps=EPS).step_block, 0)


def _torch_adam(parameters: list[Tensor], fused: bool) -> Step:
    # The form that a CUDA graph can replay: its step counter is on the device, as ours is.
    capturable = parameters[0].is_cuda
    adam = torch.optim.Adam(parameters, lr=RATE, eps=EPS, fused=fused, capturable=capturable)
    return adam.step  # type: ignore[no-any-return]


def _step(width: int, layers: int, dtype: torch.dtype, device: str) -> Case:
    """Adam over the weights and biases of some square layers."""
    shapes = [shape for _ in range(layers) for shape in ((width, width), (width,))]
    size = sum(torch.Size(shape).numel() for shape in shapes)

    def make(generator: torch.Generator) -> Inputs:
        def fresh() -> list[Tensor]:
            return [
                torch.randn(shape, generator=generator, device=device).to(dtype) for shape in shapes
            ]

        parameters, gradients = fresh(), fresh()
        return (*parameters, *gradients, *(x.clone() for x in parameters))

    def error(inputs: Inputs, outputs: Values) -> float:
        """Of all parameters after the first step: each goes the rate against its gradient."""
        third = len(inputs) // 3
        worst = 0.0
        for i in range(third):
            gradient, start = (inputs[k * third + i].double() for k in (1, 2))
            want = start - RATE * gradient / (gradient.abs() + EPS)
            worst = max(worst, relative_l2(outputs[i], want))
        return worst

    peers = {
        "eager": _stepping(partial(_torch_adam, fused=False)),
        "fused": _stepping(partial(_torch_adam, fused=True)),
    }
    traffic = optimizer_step(size, dtype.itemsize, states=2, checked=False)
    name = f"adam step {layers} x [{width}, {width}] {str(dtype)[6:]}"
    quick = dtype == torch.float32
    return Case(name, make, _stepping(_ours), peers, traffic.moved, 2 * GATE[dtype], error, quick)


def _means_of(inputs: Inputs, classes: int) -> Values:
    x, labels = inputs
    sums = torch.zeros(classes, x.shape[1], device=x.device).index_add_(0, labels, x.float())
    # Not bincount, which waits for the largest label and cannot be captured.
    ones = torch.ones(labels.shape, device=x.device)
    counts = torch.zeros(classes, device=x.device).index_add_(0, labels, ones)
    return (sums / counts.clamp(min=1)[:, None],)


def _means(shape: tuple[int, int], classes: int, dtype: torch.dtype, device: str) -> Case:
    """Means of the rows of every class, against a sum by index."""

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        return x, torch.randint(classes, shape[:1], generator=generator, device=device)

    def ours(inputs: Inputs) -> Values:
        return (bk.class_means(*inputs, classes)[0],)

    def error(inputs: Inputs, outputs: Values) -> float:
        x, labels = inputs
        one_hot = torch.nn.functional.one_hot(labels, classes).double()
        want = one_hot.t() @ x.double() / one_hot.sum(0).clamp(min=1)[:, None]
        return relative_l2(outputs[0], want)

    eager: Form = partial(_means_of, classes=classes)
    peers: dict[str, Form] = {"eager": eager, "compile": torch.compile(eager, dynamic=False)}
    moved = means_bytes(*shape, classes, dtype.itemsize)
    name = f"class means {list(shape)} x {classes} {str(dtype)[6:]}"
    quick = classes == 10 and dtype == torch.bfloat16
    # Sums of thousands of float32 numbers.
    return Case(name, make, ours, peers, moved, CLASS_GATE[torch.float32], error, quick)


def step_cases(device: str, tiny: bool) -> list[Case]:
    """Every case; ``tiny`` shrinks the shapes so that the driver can be tried anywhere."""
    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16):
        # A block below a million parameters, where the host decides, and a large one.
        for width, layers in ((256, 8), (4096, 4)):
            found.append(_step(32 if tiny else width, layers, dtype, device))
        for classes in (10, 1000):
            shape = (8, 64) if tiny else (4096, 4096)
            found.append(_means(shape, classes, dtype, device))
    return found
