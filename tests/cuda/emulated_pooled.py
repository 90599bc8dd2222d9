"""Class losses on pooled maps in one emulated CUDA kernel, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from class_cases import ClassCase, check_class, make_class
from emulated import counts, cuda, emulation  # noqa: F401
from oracle import OracleFamily
from test_pool import MEMORY
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.backends.selection import backend_for, reads_whole
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "cuda")

every_family = pytest.mark.parametrize("family", ["gaussian", "gaussian-precision", None])
every_memory = pytest.mark.parametrize("memory", MEMORY)


def make(
    family: str | None,
    shape: tuple[int, ...],
    grid: int,
    memory: str = "nchw",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> ClassCase:
    width = shape[1] * grid * grid
    case = make_class(family, batch=(shape[0],), width=width, pool=("mean", grid), **options)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    table = (case.table / max(width, 1) ** 0.5).to(dtype)
    return case.with_options(a=x.to(memory_format=MEMORY[memory]), table=table)


def fused(case: ClassCase) -> bool:
    name = case.family.name if case.family else "gaussian"
    function = "class_evidence_loss" if case.family else "linear_cross_entropy"
    found = backend_for(function, case.a, family=name, classes=len(case.table), pool=case.pool)
    return found == "emulated-pooled"


def check(case: ClassCase) -> None:
    # A map of the grid's own size is read by the class loss itself.
    assert fused(case) != reads_whole(case.a, *case.pool)
    check_class(case)


@every_family
@every_memory
def test_dtypes(family: str | None, memory: str) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for grid in (1, 2, 4):
            check(make(family, (3, 8, 8, 16), grid, memory, dtype))
    case = make(family, (3, 8, 8, 8), 2, memory, torch.bfloat16)
    check(case.with_options(table=case.table.float() * 1.001, bias=torch.randn(4)))


@every_family
def test_options(family: str | None) -> None:
    bias, weight = torch.randn(4), torch.tensor([1.0, 0.0, -0.5])
    for reduction in ("none", "sum", "batchmean"):
        check(make(family, (3, 4, 6, 4), 2, reduction=reduction, bias=bias, weight=weight))
    case = make(family, (3, 4, 6, 4), 2, bias=bias)
    if family is not None:
        check(case.with_options(tilt=0.3))
    if family == "gaussian":
        check(case.with_options(normalize_message=True, tilt=0.7))


@every_memory
@pytest.mark.parametrize(
    ("shape", "grid"),
    [
        *(((1, 1, 1, 1), 1), ((2, 19, 1, 5), 2), ((2, 70, 13, 2), 3), ((1, 3, 17, 18), 5)),
        *(((3, 5, 7, 6), 2), ((2, 8, 7, 7), 4), ((2, 16, 14, 14), 2), ((0, 3, 4, 4), 2)),
        *(((2, 3, 33, 8), 1), ((1, 2, 70, 66), 2), ((2, 300, 4, 5), 4), ((1, 600, 2, 2), 1)),
    ],
    ids=str,
)
def test_shapes(memory: str, shape: tuple[int, ...], grid: int) -> None:
    """Overlapping cells, more cells than pixels, every width of access, one of everything."""
    dtypes = (torch.float32, torch.bfloat16) if shape[0] * shape[1] < 100 else (torch.bfloat16,)
    for dtype in dtypes:
        check(make("gaussian", shape, grid, memory, dtype))


@every_memory
@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_every_access_of_a_row(memory: str, width: int) -> None:
    for dtype in (torch.float32, torch.float16):
        check(make(None, (2, 3, 2, 2 * width), 2, memory, dtype))
        misaligned = torch.empty(2 * 3 * 2 * 2 * width + 1, dtype=dtype)[1:]
        case = make(None, (2, 3, 2, 2 * width), 2, memory, dtype)
        view = torch.as_strided(misaligned, case.a.shape, case.a.stride()).copy_(case.a)
        check(case.with_options(a=view))


@every_family
@pytest.mark.parametrize("classes", [1, 2, 18, 130, 1024])
def test_classes(family: str | None, classes: int) -> None:
    check(make(family, (2, 4, 2, 2), 1, classes=classes))


def test_many_images_and_strided_tables() -> None:
    """Several sections of the table gradient, and rows of the table that are not together."""
    check(make("gaussian", (140, 2, 2, 4), 2, classes=3, bias=torch.randn(3)))
    case = make("gaussian", (3, 4, 4, 4), 2)
    for columns in (slice(0, 16), slice(1, 17), slice(4, 20)):
        table = torch.full((4, 20), torch.nan)[:, columns].copy_(case.table)
        check(case.with_options(table=table))


def test_other_strides_are_copied() -> None:
    base = torch.randn(2, 6, 10, 12)
    for x in (base[:, ::2], base[:, :, 1:9, 2:], base.transpose(2, 3)):
        check(make("gaussian", tuple(x.shape), 2).with_options(a=x))


@every_memory
@pytest.mark.parametrize("size", [(8, 8), (7, 6)], ids=str)
def test_compact_gradient(memory: str, size: tuple[int, int]) -> None:
    case = make("gaussian", (3, 4, *size), 2, memory, torch.bfloat16)
    value, (grad,) = case.call(True, case.operands(), wrt=("a",), compact_grad=True)
    with bk.use_backend("reference"):
        want, (want_grad,) = case.call(True, case.operands(), wrt=("a",), compact_grad=True)
    assert grad.shape == (3, 4, 2, 2) and grad.dtype == torch.float32
    torch.testing.assert_close(value, want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, want_grad, rtol=1e-4, atol=1e-6)


def test_labels_out_of_range_and_nan_stay_in_their_images() -> None:
    case = make("gaussian", (4, 3, 4, 4), 2, reduction="none")
    case.a[1, 2, 3, 3] = torch.nan
    value, grad, _, _ = op("emulated", "pooled_class_loss_value_and_grad")(
        case.a, case.table, torch.tensor([0, 1, 9, -1]), None, None, "gaussian", 1.0, False, 1.0,
        "none", 2, True, False, False, False,
    )  # fmt: skip
    assert value.isfinite().tolist() == [True, False, False, False]
    assert torch.isfinite(grad[0]).all() and torch.isnan(grad[1:].flatten(1)).all(1).all()


@pytest.mark.parametrize("name", ["bernoulli", "max", "std", "latents", "classes"])
def test_what_it_does_not_serve_goes_the_long_way(name: str) -> None:
    if name == "bernoulli":
        case = make(name, (2, 4, 4, 4), 2)
    elif name == "latents":
        case = make("gaussian", (1, 8193, 1, 2), 1)
    elif name == "classes":
        assert not fused(make("gaussian", (1, 2, 2, 2), 1, classes=1025))
        return
    else:
        case = make("gaussian", (2, 4, 4, 4), 2).with_options(pool=(name, 2))
    assert not fused(case)
    counts()
    case.call(True, case.operands(), wrt=("a",))
    assert counts()["launches"] >= 3


@every_memory
def test_same_bits_in_every_order(memory: str) -> None:
    for grid in (1, 2, 3):
        case = make("gaussian", (5, 24, 8, 8), grid, memory, classes=11)
        results = []
        for order in (0, 1, 2, 3):
            with emulation(order):
                value, grads = case.call(True, case.operands(), wrt=case.names)
                results.append((value, *grads))
        for got in results[1:]:
            for one, other in zip(got, results[0], strict=True):
                assert_same_bits(one, other)


@every_memory
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_two_launches_and_one_read_of_the_map(memory: str, dtype: torch.dtype, grid: int) -> None:
    case = make("gaussian", (6, 16, 8, 8), grid, memory, dtype, classes=12)
    for wrt, launches in ((("a",), 2), (("a", "table"), 3), ((), 2)):
        counts()
        case.call(True, case.operands(), wrt=wrt)
        done = counts()
        assert done["launches"] == launches
        if wrt == ("table",):
            continue
        images, table = len(case.a), case.table.numel() * dtype.itemsize
        labels = images * 32 * 8
        reads = 2 if "a" in wrt else 1
        own = case.a.numel() * dtype.itemsize + labels + reads * images * table
        assert done["loaded"] == own if "table" not in wrt else done["loaded"] > own
    one = case.with_options(a=case.a[:1], labels=case.labels[:1])
    counts()
    one.call(True, one.operands(), wrt=("a",))
    assert counts()["launches"] == 1


def test_options_of_a_family_reach_the_kernel() -> None:
    for tau in (0.1, 3.0):
        case = make("gaussian-precision", (3, 4, 4, 4), 2, bias=torch.randn(4))
        check(case.with_options(family=OracleFamily("gaussian-precision", tau=tau)))
