"""The kernels that are measured, each with its inputs, its truth, its bytes and its peers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import bll_kernels as bk
from bench import peers as bernoulli
from bench.gpu.forms import (
    Form,
    Inputs,
    Values,
    differentiated,
    every_form,
    liger_cross_entropy,
)
from bench.traffic import (
    class_bytes,
    matmul_class_bytes,
    next_units,
    pair_bytes,
    pooled_class_bytes,
)

#: Largest relative L2 error of da.
GATE = {torch.float32: 3e-7, torch.bfloat16: 2e-3, torch.float16: 3e-4}
#: Class losses sum over latents and classes: the score decides.
CLASS_GATE = {torch.float32: 1e-5, torch.bfloat16: 4e-3, torch.float16: 1e-3}
CHECKED_ROWS = 32


@dataclass(frozen=True)
class Case:
    """One entry of the report."""

    name: str
    make: Callable[[torch.Generator], Inputs]
    ours: Form
    peers: dict[str, Form]
    moved_bytes: int
    gate: float
    #: Error of the first gradient against float64 on some rows.
    error: Callable[[Inputs, Values], float]
    quick: bool = False


def relative_l2(got: Tensor, want: Tensor) -> float:
    """Distance over the length of what is wanted."""
    return ((got.double() - want).norm() / want.norm()).item()


def _row_error(
    value: Callable[..., Tensor], rows: int, per_row: tuple[int, ...]
) -> Callable[[Inputs, Values], float]:
    """Error of da on the first rows; ``per_row`` are the inputs with a row for every row."""

    def error(inputs: Inputs, outputs: Values) -> float:
        head = [
            (x[:CHECKED_ROWS] if i in per_row else x).detach().cpu() for i, x in enumerate(inputs)
        ]
        head = [x.double() if x.is_floating_point() else x for x in head]
        a = head[0].requires_grad_()
        (want,) = torch.autograd.grad(value(a, *head[1:]), a)
        # Means over the batch: the head's is over fewer rows.
        share = min(CHECKED_ROWS, rows) / rows
        return relative_l2(outputs[1][:CHECKED_ROWS].cpu(), want * share)

    return error


def _dense(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    a = 3 * torch.randn(shape, generator=generator, device=device)
    return a.to(dtype), torch.randn(shape, generator=generator, device=device).to(dtype)


def _with_next(form: Form, dtype: torch.dtype) -> Form:
    """The next block's input as others get it: by one more pass."""

    def both(inputs: Inputs) -> Values:
        with torch.no_grad():
            mean = torch.sigmoid(inputs[0] + inputs[1]).to(dtype)
        return (*form(inputs), mean)

    return both


def _bernoulli(
    shape: tuple[int, int],
    dtype: torch.dtype,
    full: bool,
    device: str,
    following: torch.dtype | None = None,
) -> Case:
    value = partial(bernoulli.formula, full=full)
    wanted = 2 if full else 1
    options: dict[str, Any] = {"stop_posterior": not full, "wrt": ("a", "b")[:wanted]}
    if following is not None:
        options |= {"next_input": "rho", "next_dtype": following}

    def ours(inputs: Inputs) -> Values:
        value, grads, *mean = bk.posterior_kl_value_and_grad(*inputs, "bernoulli", **options)
        return (value, *grads, *mean)

    fused = torch.compile(bernoulli.one_graph, dynamic=False)

    def one_graph(inputs: Inputs) -> Values:
        with torch.no_grad():
            result: Values = fused(*inputs, full)
        return result

    def distributions(a: Tensor, b: Tensor) -> Tensor:
        return bernoulli.distributions(a, b, full)

    more = {"distributions": differentiated(distributions, wanted), "one graph": one_graph}
    forms = every_form(value, wanted, more)
    kind = "full da db" if full else "stopped da"
    item = torch.empty((), dtype=dtype).element_size()
    moved = pair_bytes(shape[0] * shape[1], item, grad_b=full)
    if following is not None:
        forms = {name: _with_next(form, following) for name, form in forms.items()}
        kind += f" next {str(following)[6:]}"
        units = next_units(following.itemsize, item)
        moved += int(units * shape[0] * shape[1] * item)
    return Case(
        f"bernoulli {kind} {list(shape)} {str(dtype)[6:]}",
        partial(_dense, shape, dtype, device),
        ours,
        forms,
        moved,
        GATE[dtype],
        _row_error(value, shape[0], (0, 1)),
        quick=shape[0] * shape[1] >= 1 << 24 or dtype == torch.bfloat16,
    )


def _gaussian_value(a: Tensor, b: Tensor) -> Tensor:
    mean = (a + b).detach()
    return ((mean - a) ** 2).sum() / 2 / a.shape[0]


def _gaussian(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Case:
    def ours(inputs: Inputs) -> Values:
        value, grads = bk.posterior_kl_value_and_grad(*inputs, "gaussian")
        return (value, *grads)

    item = torch.empty((), dtype=dtype).element_size()
    return Case(
        f"gaussian stopped da {list(shape)} {str(dtype)[6:]}",
        partial(_dense, shape, dtype, device),
        ours,
        every_form(_gaussian_value, 1),
        pair_bytes(shape[0] * shape[1], item, grad_b=False),
        GATE[dtype],
        _row_error(_gaussian_value, shape[0], (0, 1)),
    )


def _table_inputs(
    shape: tuple[int, int], classes: int, dtype: torch.dtype, device: str, g: torch.Generator
) -> Inputs:
    a, _ = _dense(shape, dtype, device, g)
    table = torch.randn((classes, shape[1]), generator=g, device=device).to(dtype)
    return a, table, torch.randint(classes, shape[:1], generator=g, device=device)


def _table_value(a: Tensor, table: Tensor, labels: Tensor) -> Tensor:
    # Evidence: log E_alpha[beta] with a message looked up by label.
    b = table[labels]
    return -(F.softplus(a + b) - F.softplus(a)).sum() / a.shape[0]


def _table(shape: tuple[int, int], classes: int, dtype: torch.dtype, device: str) -> Case:
    def ours(inputs: Inputs) -> Values:
        a, table, labels = inputs
        value, grads = bk.evidence_loss_value_and_grad(
            a, table, "bernoulli", labels=labels, wrt=("a", "b")
        )
        return (value, *grads)

    item = torch.empty((), dtype=dtype).element_size()
    return Case(
        f"bernoulli evidence by label {list(shape)} x {classes} {str(dtype)[6:]}",
        partial(_table_inputs, shape, classes, dtype, device),
        ours,
        every_form(_table_value, 2),
        pair_bytes(shape[0] * shape[1], item, grad_b=True, table=True),
        GATE[dtype],
        _row_error(_table_value, shape[0], (0, 2)),
        quick=classes == 10,
    )


def _categorical_value(a: Tensor, b: Tensor) -> Tensor:
    log_p, log_q = F.log_softmax(a + b, -1), F.log_softmax(a, -1)
    return F.kl_div(log_q, log_p, log_target=True, reduction="sum") / a.shape[0]


def _categorical(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Case:
    def ours(inputs: Inputs) -> Values:
        value, grads = bk.posterior_kl_value_and_grad(
            *inputs, "categorical", stop_posterior=False, wrt=("a", "b")
        )
        return (value, *grads)

    item = torch.empty((), dtype=dtype).element_size()
    return Case(
        f"categorical full da db {list(shape)} {str(dtype)[6:]}",
        partial(_dense, shape, dtype, device),
        ours,
        every_form(_categorical_value, 2),
        pair_bytes(shape[0] * shape[1], item, grad_b=True),
        4 * GATE[dtype],
        _row_error(_categorical_value, shape[0], (0, 1)),
        quick=shape[1] in (4096, 32768) and dtype == torch.bfloat16,
    )


def _class_value(a: Tensor, table: Tensor, labels: Tensor, family: str) -> Tensor:
    features = F.adaptive_avg_pool2d(a, 4).flatten(1) if a.dim() == 4 else a
    if family == "gaussian":
        # A(a + b) - A(a) = a b + b^2 / 2.
        return F.cross_entropy(
            F.linear(features, table) + table.float().square().sum(1).to(a.dtype) / 2, labels
        )
    return F.cross_entropy(bernoulli.bernoulli_scores(features, table), labels)


def _class(
    shape: tuple[int, ...], classes: int, family: str, dtype: torch.dtype, device: str
) -> Case:
    width = 16 * shape[1] if len(shape) == 4 else shape[1]
    value = partial(_class_value, family=family)

    def make(generator: torch.Generator) -> Inputs:
        a = torch.randn(shape, generator=generator, device=device).to(dtype)
        table = torch.randn((classes, width), generator=generator, device=device) / width**0.5
        labels = torch.randint(classes, shape[:1], generator=generator, device=device)
        return a, table.to(dtype), labels

    def ours(inputs: Inputs) -> Values:
        value, grads = bk.class_evidence_loss_value_and_grad(
            *inputs,
            family,
            pool=("mean", 4) if len(shape) == 4 else None,
            wrt=("a", "table"),
        )
        return (value, *grads)

    item = torch.empty((), dtype=dtype).element_size()
    elements = torch.Size(shape).numel()
    counted = pooled_class_bytes if len(shape) == 4 else class_bytes
    return Case(
        f"class evidence {family} {list(shape)} x {classes} {str(dtype)[6:]}",
        make,
        ours,
        every_form(value, 2),
        counted(elements, item),
        CLASS_GATE[dtype],
        _row_error(value, shape[0], (0, 2)),
        quick=classes == 10,
    )


def _read_out_value(x: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), labels)


def _read_out(
    shape: tuple[int, int], classes: int, dtype: torch.dtype, device: str, quick: bool
) -> Case:
    """A linear read-out with its cross-entropy; Liger's peer where it is installed."""

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        weight = torch.randn((classes, shape[1]), generator=generator, device=device)
        labels = torch.randint(classes, shape[:1], generator=generator, device=device)
        return x, (weight / shape[1] ** 0.5).to(dtype), labels

    def ours(inputs: Inputs) -> Values:
        value, grads = bk.linear_cross_entropy_value_and_grad(*inputs, wrt=("x", "weight"))
        return (value, *grads)

    item = torch.empty((), dtype=dtype).element_size()
    return Case(
        f"linear cross-entropy {list(shape)} x {classes} {str(dtype)[6:]}",
        make,
        ours,
        every_form(_read_out_value, 2, {"liger": liger_cross_entropy()}),
        matmul_class_bytes(*shape, classes, item),
        CLASS_GATE[dtype],
        _row_error(_read_out_value, shape[0], (0, 2)),
        quick=quick,
    )


def _gram_value(x: Tensor, labels: Tensor) -> Tensor:
    unit = F.normalize(x - x.mean(1, keepdim=True), dim=1)
    target = torch.where(labels[:, None] == labels, 1.0, -1 / 9).to(x.dtype)
    return (unit @ unit.t() - target).square().mean()


def _gram(shape: tuple[int, int], dtype: torch.dtype, device: str) -> Case:
    """Similarities of a batch against those of its labels."""

    def make(generator: torch.Generator) -> Inputs:
        x = torch.randn(shape, generator=generator, device=device).to(dtype)
        return x, torch.randint(10, shape[:1], generator=generator, device=device)

    def ours(inputs: Inputs) -> Values:
        value, grads = bk.gram_loss_value_and_grad(*inputs, num_classes=10)
        return (value, *grads)

    def error(inputs: Inputs, outputs: Values) -> float:
        x = inputs[0].detach().cpu().double().requires_grad_()
        (want,) = torch.autograd.grad(_gram_value(x, inputs[1].cpu()), x)
        return relative_l2(outputs[1].cpu(), want)

    item = torch.empty((), dtype=dtype).element_size()
    moved = 2 * shape[0] * shape[1] * item
    forms = every_form(_gram_value, 1)
    return Case(
        f"gram {list(shape)} {str(dtype)[6:]}", make, ours, forms, moved, CLASS_GATE[dtype], error
    )


def cases(device: str, tiny: bool) -> list[Case]:
    """Every case; ``tiny`` shrinks the shapes so that the driver can be tried anywhere."""

    def rows(n: int) -> int:
        return min(n, 8) if tiny else n

    def columns(n: int) -> int:
        return min(n, 64) if tiny else n

    found: list[Case] = []
    for dtype in (torch.float32, torch.bfloat16):
        for full in (False, True):
            found.append(_bernoulli((rows(4096), columns(4096)), dtype, full, device))
        square = (rows(4096), columns(4096))
        found.append(_bernoulli(square, dtype, True, device, torch.bfloat16))
        found.append(_bernoulli((rows(256), columns(4096) - 1), dtype, False, device))
        found.append(_gaussian((rows(4096), columns(4096)), dtype, device))
        for classes in (10, 1000):
            found.append(_table((rows(4096), columns(4096)), classes, dtype, device))
        for width in (256, 1024, 4096, 32768, 131072, 262144):
            shape = (rows((1 << 25) // width), columns(width) + (width >> 10 if tiny else 0))
            found.append(_categorical(shape, dtype, device))
        for classes in (10, 1000):
            found.append(_class((rows(4096), columns(1024)), classes, "gaussian", dtype, device))
        maps = (rows(256), 4, 7, 7) if tiny else (256, 256, 28, 28)
        found.append(_class(maps, 10, "gaussian", dtype, device))
        half = dtype == torch.bfloat16
        for classes in (32_000, 128_000):
            shape, some = (rows(4096), columns(1024)), classes // 25 if tiny else classes
            found.append(_read_out(shape, some, dtype, device, half and classes == 32_000))
        found.append(_gram((rows(1024), columns(512)), dtype, device))
        for classes in (10, 100):
            found.append(_class((rows(512), columns(4096)), classes, "bernoulli", dtype, device))
    return found
