"""Launch tables as numbers, and the traffic model against what emulated kernels load."""

from __future__ import annotations

import ctypes

import pytest
import torch
from cases import make_pair
from emulated import PROCESSORS, SHARED, counts, emulation, library

from bll_kernels.ops import op

FAMILIES = ("bernoulli", "gaussian", "gaussian-precision", "gaussian-diagonal", "categorical")
DTYPES = {torch.float32: 1, torch.bfloat16: 2, torch.float16: 3}
FIELDS = (
    *("flat", "rows", "width", "tail", "count", "lanes", "chunks", "units", "blocks"),
    *("values_per_row", "two_stages", "sections", "sort_chunks", "tier", "group_lanes", "wide"),
    *("cluster", "kept", "shared", "across", "table_blocks", "most_shared"),
)
H200 = 132
#: GPCs of 132 multiprocessors, which no cluster spans.
GPCS = (18, 18, *(16,) * 6)


def room(gpcs: tuple[int, ...], *, blocks: int) -> list[int]:
    """Clusters of 2, 4 and 8 blocks that fit at once, `blocks` of them on a multiprocessor."""
    return [sum(gpc * blocks // size for gpc in gpcs) for size in (2, 4, 8)]


#: Multiprocessors, blocks of a cluster, bytes of shared memory that a block may ask for, clusters
#: that run at once.
DEVICES = {
    "sm_80": (108, 1, 166_912, [0] * 6),
    "sm_90": (H200, 8, 232_448, [*room(GPCS, blocks=1), *room(GPCS, blocks=2)]),
}


def plan(
    family: str,
    dtype: torch.dtype,
    rows: int,
    width: int,
    *,
    group: int = 1,
    classes: int = 0,
    per_row: bool = False,
    device: str = "sm_90",
) -> dict[str, int]:
    numbers = (ctypes.c_int64 * len(FIELDS))()
    sizes = [ctypes.c_int64(x) for x in (rows, width, group, classes)]
    processors, cluster, shared, clusters = DEVICES[device]
    library().bll_emulator_plan(
        *(FAMILIES.index(family), DTYPES[dtype], *sizes, int(per_row), processors, cluster),
        *(ctypes.c_int64(shared), (ctypes.c_int * 6)(*clusters), numbers),
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
    assert chosen(few, "sections", "sort_chunks") == (12, 16)
    many = plan("bernoulli", torch.float32, 4096, 1024, classes=1000)
    assert chosen(many, "sections", "sort_chunks") == (1, 16)
    most = plan("bernoulli", torch.float32, 1 << 20, 64, classes=100_000)
    assert chosen(most, "sections", "sort_chunks") == (1, 41)


@pytest.mark.parametrize(
    ("group", "tier", "lanes", "wide"),
    [
        *((2, 0, 1, 0), (8, 0, 1, 1), (100, 0, 16, 1), (256, 0, 32, 1), (257, 1, 128, 0)),
        *((1024, 1, 128, 1), (4096, 2, 256, 1), (8192, 3, 512, 1), (262_144, 4, 128, 1)),
    ],
)
def test_group_tiers(group: int, tier: int, lanes: int, wide: int) -> None:
    found = plan("categorical", torch.float32, 64, group, group=group)
    assert chosen(found, "tier", "group_lanes", "wide") == (tier, lanes, wide)


@pytest.mark.parametrize(
    ("group", "groups", "wanted"),
    [
        # Tier, threads per group, groups of a row in a block, sections, blocks.
        (4, 1, (0, 1, 1, 64, 704)),
        (10, 100, (0, 2, 128, 64, 704)),
        (256, 4, (0, 32, 4, 64, 704)),
        (1000, 1, (1, 128, 1, 64, 704)),
        (2048, 1, (2, 256, 1, 64, 704)),
        (4096, 1, (3, 512, 1, 64, 704)),
        (1000, 20, (1, 128, 1, 5, 1100)),
    ],
)
def test_tables_of_groups(group: int, groups: int, wanted: tuple[int, ...]) -> None:
    found = plan("categorical", torch.float32, 4096, group * groups, group=group, classes=10)
    assert chosen(found, "tier", "group_lanes", "across", "sections", "table_blocks") == wanted


@pytest.mark.parametrize(
    ("device", "dtype", "group", "wanted"),
    [
        # Latents and sums of two blocks on a multiprocessor: 12 bytes each in float32, 8 in half.
        ("sm_90", torch.bfloat16, 8192, (1, 8, 65_536, 64)),
        ("sm_90", torch.bfloat16, 32_768, (4, 8, 65_536, 24)),
        ("sm_90", torch.float32, 32_768, (4, 16, 98_304, 24)),
        # One block on each, and what does not fit is read again.
        ("sm_90", torch.bfloat16, 262_144, (8, 28, 229_376, 12)),
        ("sm_90", torch.float32, 262_144, (8, 37, 227_328, 12)),
        ("sm_80", torch.float32, 32_768, (1, 27, 165_888, 64)),
    ],
)
def test_tables_of_long_groups(
    device: str, dtype: torch.dtype, group: int, wanted: tuple[int, ...]
) -> None:
    found = plan("categorical", dtype, 4096, group, group=group, classes=10, device=device)
    assert found["tier"] == 4
    assert chosen(found, "cluster", "kept", "shared", "sections") == wanted


@pytest.mark.parametrize(
    ("device", "dtype", "group", "rows", "wanted"),
    [
        # Two blocks on a multiprocessor; fewer groups than those take more blocks each.
        ("sm_90", torch.bfloat16, 16_384, 4096, (1, 16, 65_536, 264)),
        ("sm_90", torch.float32, 32_768, 4096, (4, 16, 65_536, 264)),
        ("sm_90", torch.float32, 32_768, 16, (8, 8, 32_768, 128)),
        # 33 clusters would have two blocks for each of 132 multiprocessors, and 32 fit.
        ("sm_90", torch.bfloat16, 131_072, 4096, (8, 16, 65_536, 256)),
        # One block on each, and an eighth of a float32 row that is read again.
        ("sm_90", torch.bfloat16, 262_144, 4096, (8, 32, 131_072, 128)),
        ("sm_90", torch.float32, 262_144, 4096, (8, 56, 229_376, 128)),
        # No clusters.
        ("sm_80", torch.bfloat16, 16_384, 4096, (1, 16, 65_536, 216)),
        ("sm_80", torch.float32, 32_768, 4096, (1, 40, 163_840, 108)),
    ],
)
def test_long_groups(
    device: str, dtype: torch.dtype, group: int, rows: int, wanted: tuple[int, ...]
) -> None:
    found = plan("categorical", dtype, rows, group, group=group, device=device)
    assert chosen(found, "cluster", "kept", "shared", "blocks") == wanted


def test_shared_memory_is_within_what_a_block_may_ask_for() -> None:
    for device, (processors, most, shared, _) in DEVICES.items():
        for dtype in DTYPES:
            for group in (8193, 8200, 50_000, 262_144, 1 << 20):
                found = plan("categorical", dtype, 7, group, group=group, device=device)
                assert 1 <= found["cluster"] <= most
                assert found["blocks"] % found["cluster"] == 0
                assert found["blocks"] <= 2 * processors
                # One limit for every launch of a kernel: other threads of the host launch it too.
                assert found["most_shared"] == shared - 512
                assert 0 < found["shared"] <= found["most_shared"]


def loaded_bytes(
    family: str, dtype: torch.dtype, width: int, *, table: bool = False, shared: int = SHARED
) -> tuple[int, int]:
    """Bytes the emulated kernels loaded for 64 rows, and how many latents those have."""
    rows = 64
    case = make_pair(family, "kl_full", batch=(rows,), width=width, dtype=dtype)
    labels = torch.zeros(rows, dtype=torch.int64) if table else None
    b = case.b[:1] if table else case.b
    group = width if family == "categorical" else 1
    with emulation(0, PROCESSORS, 1, shared):
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


def test_long_groups_are_read_once_where_shared_memory_keeps_them() -> None:
    loaded, latents = loaded_bytes("categorical", torch.float32, 8200)
    assert loaded == 2 * latents * 4
    loaded, latents = loaded_bytes("categorical", torch.float32, 8200, shared=0)
    assert loaded == 4 * 2 * latents * 4


def test_a_table_adds_labels_to_what_is_read() -> None:
    """The rows of the table come from the cache on a GPU; the emulator counts them as loads."""
    loaded, latents = loaded_bytes("bernoulli", torch.float32, 1024, table=True)
    labels = 8 * latents // 4  # read by every thread for each of its vectors
    assert loaded == 2 * latents * 4 + labels
