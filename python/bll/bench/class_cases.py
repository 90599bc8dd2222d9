"""Cases of the losses over classes and over pairs of rows, and of pooling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import bll_kernels as bk
from bll.bench import peers
from bll.bench.cases import (
    SUMMED_GATE,
    Case,
    Form,
    Inputs,
    Values,
    compiled,
    differentiated,
)
from bll.bench.traffic import (
    SPECIAL_FUNCTIONS,
    class_bytes,
    gram_bytes,
    gram_flops,
    linear_class_flops,
    pooled_class_bytes,
)

GRID = 4


def _draw(
    shape: tuple[int, ...],
    width: int,
    classes: int,
    dtype: torch.dtype,
    device: str,
    channels_last: bool,
    generator: torch.Generator,
) -> Inputs:
    a = torch.randn(shape, generator=generator, device=device).to(dtype)
    if channels_last:
        a = a.to(memory_format=torch.channels_last)
    table = torch.randn((classes, width), generator=generator, device=device) / width**0.5
    labels = torch.randint(classes, shape[:1], generator=generator, device=device)
    return a, table.to(dtype), labels


def _forms(
    value: Callable[..., Tensor], wanted: int, device: str, compile_peers: bool
) -> dict[str, Form]:
    forms = {"eager autograd": differentiated(value, wanted)}
    if compile_peers:
        forms["torch.compile"] = compiled(value, wanted)
        if device.startswith("cuda"):
            for mode in ("reduce-overhead", "max-autotune-no-cudagraphs"):
                forms[f"torch.compile {mode}"] = compiled(value, wanted, mode)
    return forms


def class_case(
    function: str,
    family: str,
    shape: tuple[int, int],
    classes: int,
    dtype: torch.dtype,
    device: str,
    *,
    compile_peers: bool = True,
) -> Case:
    """A class-normalised loss with gradients to latents and table.

    Args:
        function: "class_evidence_loss" or "linear_cross_entropy".
        family: "gaussian" or "bernoulli"; "gaussian" for the linear one.
        shape: Rows and latents.
        classes: Number of classes.
        dtype: Of latents and table.
        device: Where the inputs are drawn.
        compile_peers: Whether compiled forms are among the peers.
    """

    def ours(inputs: Inputs) -> Values:
        if function == "linear_cross_entropy":
            value, gradients = bk.linear_cross_entropy_value_and_grad(*inputs, wrt=("x", "weight"))
        else:
            a, table, labels = inputs
            value, gradients = bk.class_evidence_loss_value_and_grad(
                a, table, labels, family, wrt=("a", "table")
            )
        return (value, *gradients)

    linear = family == "gaussian"
    scores = {"linear_cross_entropy": F.linear}.get(
        function, peers.gaussian_scores if linear else peers.bernoulli_scores
    )
    value = peers.cross_entropy_of(scores)
    forms = _forms(value, 2, device, compile_peers)
    if function == "linear_cross_entropy":
        forms |= peers.LINEAR_LIBRARIES
    rows, latents = shape
    return Case(
        name=f"{function} {family} {list(shape)} x {classes} classes {str(dtype)[6:]}",
        make=partial(_draw, shape, latents, classes, dtype, device, False),
        ours=ours,
        peers=forms,
        truth=value,
        wanted=2,
        per_row=(0, 2),
        gate=SUMMED_GATE[dtype],
        moved_bytes=class_bytes(rows * latents, dtype.itemsize),
        matmul_flops=linear_class_flops(rows, latents, classes) if linear else 0,
        special_functions=rows * latents * classes * SPECIAL_FUNCTIONS[family],
        dtype=dtype,
        config={
            "function": function,
            "family": family,
            "shape": list(shape),
            "classes": classes,
            "dtype": str(dtype)[6:],
        },
    )


def pooled_case(
    shape: tuple[int, int, int, int],
    classes: int,
    dtype: torch.dtype,
    device: str,
    *,
    channels_last: bool,
    compile_peers: bool = True,
) -> Case:
    """``linear_cross_entropy`` on a 4x4 grid of means of a feature map, gradients to map and table.

    Args:
        shape: Batch, channels, height, width; height and width are multiples of 4.
        classes: Number of classes.
        dtype: Of map and table.
        device: Where the inputs are drawn.
        channels_last: Memory layout of the map.
        compile_peers: Whether compiled forms are among the peers.
    """

    def ours(inputs: Inputs) -> Values:
        value, gradients = bk.linear_cross_entropy_value_and_grad(
            *inputs, pool=("mean", GRID), wrt=("x", "weight")
        )
        return (value, *gradients)

    value = peers.cross_entropy_of(peers.pooled_linear)
    elements, width = torch.Size(shape).numel(), GRID * GRID * shape[1]
    layout = "NHWC" if channels_last else "NCHW"
    return Case(
        name=f"linear_cross_entropy pooled {list(shape)} {layout} x {classes} classes "
        f"{str(dtype)[6:]}",
        make=partial(_draw, shape, width, classes, dtype, device, channels_last),
        ours=ours,
        peers=_forms(value, 2, device, compile_peers),
        truth=value,
        wanted=2,
        per_row=(0, 2),
        gate=SUMMED_GATE[dtype],
        moved_bytes=pooled_class_bytes(elements, dtype.itemsize),
        matmul_flops=linear_class_flops(shape[0], width, classes),
        dtype=dtype,
        config={
            "function": "linear_cross_entropy",
            "family": "gaussian",
            "message": "pooled",
            "layout": layout,
            "shape": list(shape),
            "classes": classes,
            "dtype": str(dtype)[6:],
        },
    )


def _cosine_gram(x: Tensor) -> Tensor:
    unit = F.normalize(x - x.mean(1, keepdim=True), dim=1)
    return unit @ unit.t()


def _gram_loss(x: Tensor, labels: Tensor) -> Tensor:
    same = F.one_hot(labels, CLASSES_OF_GRAM).to(x.dtype)
    return F.mse_loss(_cosine_gram(x), _cosine_gram(same))


CLASSES_OF_GRAM = 10


def gram_case(
    shape: tuple[int, int], dtype: torch.dtype, device: str, *, compile_peers: bool = True
) -> Case:
    """``gram_loss`` towards the similarity of the labels, with its gradient."""

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        return x, torch.randint(CLASSES_OF_GRAM, shape[:1], generator=generator, device=device)

    def ours(inputs: Inputs) -> Values:
        value, gradients = bk.gram_loss_value_and_grad(*inputs, num_classes=CLASSES_OF_GRAM)
        return (value, *gradients)

    return Case(
        name=f"gram_loss {list(shape)} {str(dtype)[6:]}",
        make=make,
        ours=ours,
        peers=_forms(_gram_loss, 1, device, compile_peers),
        truth=_gram_loss,
        wanted=1,
        per_row=(),
        gate=SUMMED_GATE[dtype],
        moved_bytes=gram_bytes(*shape, dtype.itemsize),
        matmul_flops=gram_flops(*shape),
        dtype=dtype,
        config={"function": "gram_loss", "shape": list(shape), "dtype": str(dtype)[6:]},
    )
