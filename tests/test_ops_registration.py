"""The registered ops as torch sees them: schema, fake kernels, compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from cases import make_pair, pair_functions
from class_cases import make_class
from gram_cases import gram_samples
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import bll_kernels as bk
from bll_kernels.ops import BACKENDS, op
from bll_kernels.schemas import SCHEMAS

#: Tracing takes ten times as long as the other checks: every third sample has it too.
QUICK_CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")


def samples() -> list[tuple[str, tuple[Any, ...]]]:
    """At least twenty argument lists for every op."""
    found: list[tuple[str, tuple[Any, ...]]] = []
    for i, family in enumerate([*oracle.FAMILIES] * 4):
        dtype = (torch.float32, torch.bfloat16, torch.float64, torch.float16)[i // 5]
        batch = ((5,), (), (2, 3), (0,))[i // 5]
        loss, reduction = oracle.LOSSES[i % 5 - i // 5], ("none", "sum", "batchmean")[i % 3]
        group = 4 if family == "categorical" else 1
        accumulate = torch.float64 if dtype == torch.float64 else torch.float32
        weight = torch.rand(batch, dtype=accumulate) if i % 2 else None
        case = make_pair(family, batch=batch, dtype=dtype)
        labels = torch.randint(3, batch) if i % 4 == 1 else None
        b = case.b if labels is None else make_pair(family, batch=(3,), dtype=dtype).b
        grad = torch.randn(batch if reduction == "none" else (), dtype=accumulate)
        pair = (case.a, b, labels, weight, family, group, 0.5, loss, 1.5, reduction)
        needs = (i % 3 != 0, i % 3 != 1)
        found.append(("pair_loss", pair))
        found.append(("pair_loss_backward", (grad, *pair, *needs)))
        found.append(("pair_loss_value_and_grad", (*pair, *needs)))
        following = (0.0, torch.float32), (1.0, dtype), (0.3, torch.bfloat16)
        found.append(("pair_loss_next", (*pair, *needs, *following[i % 3])))

        classes = make_class(family, batch=batch, dtype=dtype)
        bias = torch.randn(4, dtype=accumulate) if i % 2 else None
        normalize = not classes.family.density and i % 2 == 0
        options = (family, group, 0.5, normalize, 1.5)
        wanted = (i % 4 != 0, i % 4 != 1, bias is not None)
        head = (classes.a, classes.table, classes.labels, bias, weight, *options, reduction)
        residual = torch.randn((*batch, 4), dtype=accumulate)
        found.append(("class_loss", head))
        back = (grad, residual, classes.a, classes.table, *options, *wanted)
        found.append(("class_loss_backward", back))
        found.append(("class_loss_value_and_grad", (*head, *wanted)))

        kind, grid = ("mean", "max", "std")[i % 3], (1, 2, 4)[i % 3]
        memory = torch.channels_last if i % 2 else torch.contiguous_format
        x = torch.randn(2, 3, 5 + i % 3, 6).to(dtype).to(memory_format=memory)
        if i % 5 == 2:
            x = x.transpose(2, 3)
        up = torch.randn(2, 3 * grid * grid, dtype=accumulate)
        found.append(("grid_pool", (x, kind, grid)))
        found.append(("grid_pool_backward", (up, x, kind, grid)))
        cells = torch.randn(5, 3 * (1 + i % 3), dtype=accumulate)
        found.append(("standardize_channels", (cells, 3, 1e-5)))
        back = (torch.randn_like(cells), cells, torch.rand(3, dtype=accumulate))
        found.append(("standardize_channels_backward", back))
        read_out = make_class("gaussian", batch=(2,), width=3 * grid * grid, dtype=dtype)
        read = (read_out.table, read_out.labels, bias, None, "gaussian", 1.0, False, 1.5)
        asked = (i % 3 != 0, i % 2 == 0, i % 4 != 1, bias is not None)
        pooled = (x, *read, reduction, grid, *asked)
        found.append(("pooled_class_loss_value_and_grad", pooled))
        scores, slopes = torch.randn(3, 4), torch.zeros(3, 4, dtype=dtype)
        offset = None if bias is None else bias.float()
        found.append(("softmax_rows", (scores, torch.randint(4, (3,)), offset, None, slopes)))
    return found + gram_samples()


def test_every_backend_has_every_op() -> None:
    for name in BACKENDS:
        assert {str(op(name, schema)) for schema in SCHEMAS} == {
            f"bll_{name}.{schema}.default" for schema in SCHEMAS
        }


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEMAS)
def test_opcheck(backend: str, name: str) -> None:
    arguments = [given for sample, given in samples() if sample == name]
    assert len(arguments) >= 20
    for i, given in enumerate(arguments):
        checks = (*QUICK_CHECKS, "test_aot_dispatch_dynamic") if i % 3 == 2 else QUICK_CHECKS
        torch.library.opcheck(op(backend, name), given, test_utils=checks)


@pytest.mark.parametrize("name", SCHEMAS)
def test_fake_kernels_tell_shape_dtype_and_strides(backend: str, name: str) -> None:
    for sample, given in samples():
        if sample != name:
            continue
        real = op(backend, name)(*given)
        meta = [x.to("meta") if isinstance(x, Tensor) else x for x in given]
        fake = op(backend, name)(*meta)
        real, fake = ((x,) if isinstance(x, Tensor) else x for x in (real, fake))
        for got, want in zip(fake, real, strict=True):
            assert got.device.type == "meta"
            assert (got.shape, got.dtype) == (want.shape, want.dtype)
            assert got.stride() == want.stride()


def check_autocast_changes_nothing(backend: str, name: str, given: tuple[Any, ...]) -> None:
    """An op takes its tensors in the dtypes they have, matmuls inside it included."""

    def run() -> tuple[Tensor, ...]:
        own = [x.clone() if isinstance(x, Tensor) else x for x in given]
        found = op(backend, name)(*own)
        return (found,) if isinstance(found, Tensor) else found

    want = run()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = run()
    torch.testing.assert_close(found, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", SCHEMAS)
def test_autocast_changes_nothing(backend: str, name: str) -> None:
    for sample, given in samples():
        if sample == name:
            check_autocast_changes_nothing(backend, name, given)


@pytest.mark.parametrize("name", SCHEMAS)
def test_no_output_is_a_view_of_an_input(backend: str, name: str) -> None:
    for sample, given in samples():
        if sample != name:
            continue
        real = op(backend, name)(*given)
        owned = {x.untyped_storage().data_ptr() for x in given if isinstance(x, Tensor)}
        for got in (real,) if isinstance(real, Tensor) else real:
            assert not got.numel() or got.untyped_storage().data_ptr() not in owned


def step(x: Tensor, table: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Every function once, as a training step would."""
    values = (
        bk.posterior_kl(x, table, "bernoulli", labels=labels),
        bk.posterior_kl(x, table[0], "gaussian-precision", stop_posterior=False),
        bk.evidence_loss(x, table, "categorical", labels=labels, reduction="sum"),
        bk.class_evidence_loss(x, table, labels, "bernoulli", normalize_message=True),
        bk.linear_cross_entropy(x, table, labels),
    )
    return values


def pooled_step(x: Tensor, table: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """The same over pooled maps."""
    pooled = [
        bk.class_evidence_loss(x, table, labels, "gaussian", pool=(kind, 2))
        for kind in ("mean", "max", "std")
    ]
    cells = bk.grid_pool(x, "mean", 2, standardize=True)
    return (*pooled, bk.class_evidence_loss(cells, table, labels, "gaussian"))


def gradients(
    function: Callable[..., tuple[Tensor, ...]], x: Tensor, table: Tensor, labels: Tensor
) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_(), table.detach().clone().requires_grad_()]
    values = function(*leaves, labels)
    sum(value.sum() for value in values).backward()
    return [torch.stack([v.detach().reshape(()) for v in values]), *(leaf.grad for leaf in leaves)]


@pytest.mark.slow
@pytest.mark.parametrize("pooled", [False, True])
def test_compile_without_breaks_or_recompiles(backend: str, pooled: bool) -> None:
    """fullgraph, dynamic shapes: same numbers, at most two compilations over ten batch sizes."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")
    eager = pooled_step if pooled else step
    compiled = torch.compile(eager, backend=counter, fullgraph=True)
    inner = (3, 6, 6) if pooled else (12,)
    for batch in (8, 5, 12, 7, 3, 9, 16, 4, 6, 11):
        x, labels = torch.randn(batch, *inner), torch.randint(4, (batch,))
        table = torch.randn(4, 12)
        got, want = (gradients(f, x, table, labels) for f in (compiled, eager))
        torch.testing.assert_close(got, want)
    assert counter.frame_count <= 2, counter.frame_count
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kl", "kl_full", "evidence"])
def test_compiled_twins(backend: str, loss: str) -> None:
    torch._dynamo.reset()
    _, twin, options = pair_functions(loss)

    def call(a: Tensor, b: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return twin(a, b, "gaussian-diagonal", wrt=("b", "a"), **options)

    case = make_pair("gaussian-diagonal")
    compiled = torch.compile(call, fullgraph=True)
    torch.testing.assert_close(compiled(case.a, case.b), call(case.a, case.b))
    torch._dynamo.reset()


def test_backend_for_tells_what_will_run(backend: str) -> None:
    x = torch.randn(3, 4)
    for function in (
        "posterior_kl",
        "class_evidence_loss",
        "linear_cross_entropy",
        "grid_pool",
        "standardize_channels",
    ):
        assert bk.backend_for(function, x) == backend
    with torch.profiler.profile() as profile:
        bk.posterior_kl(x, x, "bernoulli")
    assert any(event.name == f"bll_{backend}::pair_loss" for event in profile.events())
