"""Random shapes, strides, offsets, dtypes, broadcasts, labels and options against the oracle.

``HYPOTHESIS_PROFILE=long`` runs ten times as many cases.
"""

from __future__ import annotations

from typing import Any

import oracle
import pytest
import torch
from cases import PairCase, check_pair, random_natural
from class_cases import ClassCase, check_class
from hypothesis import given
from hypothesis import strategies as st
from oracle import OracleFamily
from test_pool import check_pool

pytestmark = pytest.mark.usefixtures("poisoned")

DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16])
SIZE = st.integers(0, 4)
SPREAD = st.sampled_from([0.3, 2.0, 6.0])
MESSAGE = st.sampled_from([1e-3, 0.05, 1.0, 3.0])


def laid_out(x: torch.Tensor, layout: str, offset: int) -> torch.Tensor:
    """The same numbers in memory of another shape; what lies between them is NaN."""
    if layout == "dense" and not offset:
        return x.clone()
    if layout == "transposed" and x.dim() >= 2:
        order = list(range(x.dim()))
        order[0], order[-2] = order[-2], order[0]
        return x.permute(order).contiguous().permute(order)
    step = 2 if layout == "every second" else 1
    pitch = 3 if layout in ("pitched", "every second") else 0
    shape = [*x.shape[:-1], x.shape[-1] * step + pitch]
    count = 1
    for n in shape:
        count *= n
    storage = torch.full((count + offset,), torch.nan, dtype=x.dtype)
    view = storage[offset:].view(shape)[..., : x.shape[-1] * step : step]
    view.copy_(x)
    return view


LAYOUT = st.tuples(
    st.sampled_from(["dense", "dense", "pitched", "transposed", "every second"]),
    st.sampled_from([0, 0, 1, 3, 5]),
)


@st.composite
def families(draw: st.DrawFn) -> tuple[OracleFamily, int]:
    """A family and a number of latents that suits it."""
    name = draw(st.sampled_from(oracle.FAMILIES))
    width = draw(st.one_of(st.integers(0, 9), st.sampled_from([16, 17, 33, 70])))
    group = None
    if name == "categorical" and width and draw(st.booleans()):
        group = draw(st.sampled_from([g for g in range(1, width + 1) if width % g == 0]))
    tau = draw(st.sampled_from([0.1, 1.0, 7.0])) if name == "gaussian-precision" else 1.0
    return OracleFamily(name, tau=tau, group=group), width


@st.composite
def shared_options(draw: st.DrawFn, batch: tuple[int, ...], seed: int) -> dict[str, Any]:
    weight = None
    if draw(st.booleans()):
        generator = torch.Generator().manual_seed(seed + 1)
        weight = 3 * torch.rand(batch, generator=generator) - 0.5
    return {
        "tilt": draw(st.sampled_from([1.0, 1.0, 0.5, 2.0])),
        "reduction": draw(st.sampled_from(["none", "sum", "batchmean"])),
        "weight": weight,
    }


@st.composite
def pair_cases(draw: st.DrawFn) -> PairCase:
    family, width = draw(families())
    loss, dtype = draw(st.sampled_from(oracle.LOSSES)), draw(DTYPES)
    batch = tuple(draw(st.lists(SIZE, max_size=3)))
    seed = draw(st.integers(0, 2**30))
    generator = torch.Generator().manual_seed(seed)
    inner = (2, width) if family.planes == 2 else (width,)
    mixed = dtype in (torch.bfloat16, torch.float16) and draw(st.booleans())
    b_dtype = torch.float32 if mixed else dtype

    labels = None
    kind = draw(st.sampled_from(["dense", "dense", "broadcast", "table"]))
    b_batch = batch
    if kind == "table":
        classes = draw(st.integers(1, 5))
        b_batch = (classes,)
        labels = torch.randint(classes, batch, generator=generator)
    elif kind == "broadcast":
        b_batch = tuple(n if draw(st.booleans()) else 1 for n in batch)
        b_batch = b_batch[draw(st.integers(0, len(batch))) :]

    a = random_natural((*batch, *inner), family, draw(SPREAD), generator).to(dtype)
    b = random_natural((*b_batch, *inner), family, draw(MESSAGE), generator).to(b_dtype)
    a, b = laid_out(a, *draw(LAYOUT)), laid_out(b, *draw(LAYOUT))
    return PairCase(family, loss, a, b, labels, **draw(shared_options(batch, seed)))


@st.composite
def class_cases(draw: st.DrawFn) -> ClassCase:
    family, width = draw(families())
    linear = draw(st.integers(0, 4)) == 0
    family = OracleFamily("gaussian") if linear else family
    dtype, batch = draw(DTYPES), tuple(draw(st.lists(SIZE, max_size=3)))
    seed = draw(st.integers(0, 2**30))
    generator = torch.Generator().manual_seed(seed)
    classes = draw(st.sampled_from([1, 2, 3, 4, 5, 8, 11]))
    inner = (2, width) if family.planes == 2 else (width,)
    half = dtype in (torch.bfloat16, torch.float16)
    table_dtype = torch.float32 if half and draw(st.booleans()) else dtype
    a = random_natural((*batch, *inner), family, draw(SPREAD), generator).to(dtype)
    table = random_natural((classes, *inner), family, draw(MESSAGE), generator)
    bias = None
    if draw(st.booleans()):
        bias = torch.randn(classes, generator=generator).to(table_dtype)
    options = draw(shared_options(batch, seed))
    if linear:
        options["tilt"] = 1.0
    return ClassCase(
        None if linear else family,
        laid_out(a, *draw(LAYOUT)),
        laid_out(table.to(table_dtype), *draw(LAYOUT)),
        torch.randint(classes, batch, generator=generator),
        bias,
        normalize_message=not linear and not family.density and draw(st.booleans()),
        **options,
    )


@st.composite
def maps(draw: st.DrawFn) -> torch.Tensor:
    shape = [draw(st.integers(n, 9)) for n in (0, 1, 1, 1)]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**30)))
    x = torch.randn(shape, generator=generator).to(draw(DTYPES))
    if draw(st.booleans()):
        x = x.to(memory_format=torch.channels_last)
    elif draw(st.booleans()):
        x = laid_out(x, *draw(LAYOUT))
    return x


@pytest.mark.slow
@given(case=pair_cases())
def test_pair(backend: str, case: PairCase) -> None:
    check_pair(case)


@pytest.mark.slow
@given(case=class_cases())
def test_class(backend: str, case: ClassCase) -> None:
    check_class(case)


@pytest.mark.slow
@given(x=maps(), kind=st.sampled_from(["mean", "max", "std"]), grid=st.integers(1, 5))
def test_pool(backend: str, x: torch.Tensor, kind: str, grid: int) -> None:
    torch.manual_seed(x.numel())
    check_pool(x, kind, grid)
