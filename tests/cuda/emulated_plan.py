"""Launch tables as numbers, and the traffic model against what emulated kernels load."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cases import make_pair
from emulated import PROCESSORS, counts, emulation, library

from bll_kernels.ops import op

FAMILIES = ("bernoulli", "gaussian", "gaussian-precision", "gaussian-diagonal", "categorical")
DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
FIELDS = (
    *("flat", "rows", "width", "tail", "count", "lanes", "chunks", "units", "blocks"),
    *("values_per_row", "two_stages", "sections", "sort_chunks", "tier", "group_lanes", "wide"),
)
H200 = 132


def plan(
    family: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    *,
    group: int = 1,
    classes: int = 0,
    per_row: bool = False,
) -> dict[str, int]:
    numbers = (ctypes.c_int64 * len(FIELDS))()
    sizes = [ctypes.c_int64(x) for x in (rows, width, group, classes)]
    library().bll_emulator_plan(
        FAMILIES.index(family), DTYPES[dtype], *sizes, int(per_row), H200, numbers
    )
    return dict(zip(FIELDS, numbers, strict=True))


def chosen(found: dict[str, int], *names: str) -> tuple[int, ...]:
    return tuple(found[name] for name in names)


def test_one_wave_of_blocks() -> None:
    large = plan("bernoulli", torch.bfloat16, 4096, 4096)
    assert chosen(large, "flat", "rows", "width", "tail") == (1, 1, 1 << 24, 0)
    assert chosen(large, "count", "lanes", "blocks", "two_stages") == (8, 256, 2 * H200, 1)
    small = plan("bernoulli", torch.float32, 10, 37)
    assert chosen(small, "width", "tail", "units", "blocks", "two_stages") == (368, 2, 1, 1, 0)


def test_rows_that_are_told_apart() -> None:
    rows = plan("gaussian", torch.float32, 1000, 12, per_row=True)
    assert chosen(rows, "flat", "count", "lanes", "chunks", "two_stages") == (0, 4, 4, 1, 0)
    odd = plan("gaussian", torch.bfloat16, 1000, 37, per_row=True)
    assert chosen(odd, "count", "lanes", "chunks") == (1, 64, 1)
    long = plan("gaussian", torch.float32, 3, 5000, per_row=True)
    assert chosen(long, "count", "lanes", "chunks", "two_stages") == (4, 256, 5, 1)
    diagonal = plan("gaussian-diagonal", torch.float16, 64, 1024)
    assert chosen(diagonal, "flat", "count", "lanes", "chunks", "units") == (0, 8, 128, 1, 32)


def test_class_tables() -> None:
    few = plan("bernoulli", torch.float32, 4096, 1024, classes=10)
    assert chosen(few, "sections", "sort_chunks") == (14, 16)
    many = plan("bernoulli", torch.float32, 4096, 1024, classes=1000)
    assert chosen(many, "sections", "sort_chunks") == (1, 16)
    most = plan("bernoulli", torch.float32, 1 << 20, 64, classes=100_000)
    assert chosen(most, "sections", "sort_chunks") == (1, 41)


@pytest.mark.parametrize(
    ("group", "tier", "lanes", "wide"),
    [
        *((2, 0, 1, 0), (8, 0, 1, 1), (100, 0, 16, 1), (256, 0, 32, 1), (257, 1, 128, 0)),
        *((1024, 1, 128, 1), (4096, 2, 256, 1), (8192, 3, 512, 1), (262_144, 4, 512, 1)),
    ],
)
def test_group_tiers(group: int, tier: int, lanes: int, wide: int) -> None:
    found = plan("categorical", torch.float32, 64, group, group=group)
    assert chosen(found, "tier", "group_lanes", "wide") == (tier, lanes, wide)


def loaded_bytes(
    family: str, dtype: torch.dtype, width: int, *, table: bool = False
) -> tuple[int, int]:
    """Bytes the emulated kernels loaded for 64 rows, and how many latents those have."""
    rows = 64
    case = make_pair(family, "kl_full", batch=(rows,), width=width, dtype=dtype)
    labels = torch.zeros(rows, dtype=torch.int64) if table else None
    b = case.b[:1] if table else case.b
    group = width if family == "categorical" else 1
    with emulation(0, PROCESSORS):
        counts()
        op("emulated", "pair_loss_value_and_grad")(
            case.a, b, labels, None, family, group, 1.0, "kl_full", 1.0, "sum", True, not table
        )
    return counts()["loaded"], case.a.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_dense_messages_are_read_once(family: str, dtype: torch.dtype) -> None:
    for width in (64, 1024):
        loaded, latents = loaded_bytes(family, dtype, width)
        assert loaded == 2 * latents * dtype.itemsize


def test_long_groups_are_read_once_per_sweep() -> None:
    loaded, latents = loaded_bytes("categorical", torch.float32, 8200)
    assert loaded == 4 * 2 * latents * 4


def test_a_table_adds_labels_to_what_is_read() -> None:
    """The rows of the table come from the cache on a GPU; the emulator counts them as loads."""
    loaded, latents = loaded_bytes("bernoulli", torch.float32, 1024, table=True)
    labels = 8 * latents // 4  # read by every thread for each of its vectors
    assert loaded == 2 * latents * 4 + labels
