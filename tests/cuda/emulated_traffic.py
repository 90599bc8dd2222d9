"""The traffic model of bench/cuda_traffic.py against counts of the emulated kernels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from cases import make_pair
from class_cases import make_class
from emulated import SHARED, counts, cuda, emulation  # noqa: F401
from gram_cases import make_gram

from bench import cuda_traffic as model
from bench.cuda_traffic import Traffic
from bll_kernels.ops import op
from bll_kernels.optim import BlockAdam, BlockSGD

pytestmark = pytest.mark.usefixtures("cuda")

ROOT = Path(__file__).resolve().parents[2]
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def counted(run) -> Traffic:  # type: ignore[no-untyped-def]
    counts()
    run()
    done = counts()
    return Traffic(done["loaded"], done["stored"], done["special"])


@every_dtype
@pytest.mark.parametrize("family", model.PAIR_SPECIAL)
def test_pairs(family: str, dtype: torch.dtype) -> None:
    for rows, width in ((64, 256),):
        case = make_pair(family, "kl_full", batch=(rows,), width=width, dtype=dtype)
        group = width if family == "categorical" else 1
        latents = rows * width

        def run(case=case, group=group) -> None:  # type: ignore[no-untyped-def]
            op("emulated", "pair_loss_value_and_grad")(
                case.a, case.b, None, None, family, group, 1.0, "kl_full", 1.0, "sum", True, True
            )

        got = counted(run)
        want = model.pair(family, latents, dtype.itemsize)
        assert (got.loaded, got.stored) == (want.loaded, want.stored)
        # A group has a few functions of its own, in every lane.
        assert want.special <= got.special <= 1.01 * want.special


def test_long_groups() -> None:
    """Kept in the shared memory of two blocks, and read by every sweep where there is none."""
    case = make_pair("categorical", "kl_full", batch=(2,), width=8208, dtype=torch.bfloat16)
    for shared, sweeps in ((SHARED, 1), (0, 4)):
        with emulation(0, shared=shared):
            got = counted(
                lambda: op("emulated", "pair_loss_value_and_grad")(
                    case.a, case.b, None, None, "categorical", 8208, 1.0, "kl_full", 1.0, "sum",
                    True, True,
                )
            )  # fmt: skip
        want = model.pair("categorical", 2 * 8208, 2, sweeps=sweeps)
        assert (got.loaded, got.stored) == (want.loaded, want.stored)
        assert want.special <= got.special <= 1.1 * want.special


@every_dtype
@pytest.mark.parametrize("family", [f for f in model.PAIR_SPECIAL if f != "categorical"])
def test_pairs_by_label(family: str, dtype: torch.dtype) -> None:
    """The sort of the labels, then everything in one pass."""
    for rows, sections in ((24, 1), (600, 8)):
        case = make_pair(family, "kl_full", batch=(rows,), width=256, dtype=dtype)
        labels = torch.arange(rows) % 3

        def run(case=case, labels=labels) -> None:  # type: ignore[no-untyped-def]
            op("emulated", "pair_loss_value_and_grad")(
                case.a, case.b[:3], labels, None, family, 1, 1.0, "kl_full", 1.0, "sum", True, True
            )

        # Three processors have 24 blocks for 4 owners of columns: 3 classes, and rows without any.
        chunks = 256 * dtype.itemsize // (32 * 16)
        sections = min(sections, -(-24 // (4 * chunks)), -(-rows // 32))
        sort = model.label_sort(rows, 3, -(-rows // 256), 3 * -(-rows // 256))
        want = model.pair_table(
            family, rows, 256, 3, dtype.itemsize, sections=sections, blocks=sections * 3 * chunks
        )
        # The sections are added up in the table's own dtype.
        planes = 2 if family == "gaussian-diagonal" else 1
        added = 3 * 256 * planes * dtype.itemsize if sections > 1 else 0
        got = counted(run)
        assert got.loaded == sort.loaded + want.loaded
        assert got.stored == sort.stored + want.stored + added
        # A class's message is the same for all of its rows.
        assert got.special == want.special


def group_counts(case, labels, group: int) -> tuple[Traffic, Traffic]:  # type: ignore[no-untyped-def]
    """What a full KL of categorical groups by label took, beside the sort of the labels."""
    rows, classes = case.a.shape[0], 3
    got = counted(
        lambda: op("emulated", "pair_loss_value_and_grad")(
            case.a, case.b[:classes].contiguous(), labels, None, "categorical", group, 1.0,
            "kl_full", 1.0, "sum", True, True,
        )
    )  # fmt: skip
    return got, model.label_sort(rows, classes, -(-rows // 256), classes * -(-rows // 256))


@every_dtype
@pytest.mark.parametrize(
    ("rows", "group", "groups", "threads", "across", "slots"),
    [(24, 16, 4, 2, 4, 32), (600, 16, 4, 2, 4, 32), (40, 256, 1, 32, 1, 8),
     (40, 512, 2, 128, 1, 1), (40, 4096, 1, 512, 1, 1)],
)  # fmt: skip
def test_groups_by_label(
    dtype: torch.dtype, rows: int, group: int, groups: int, threads: int, across: int, slots: int
) -> None:
    """A group has `threads`; `across` of a row's groups lie side by side in a block."""
    case = make_pair("categorical", "kl_full", batch=(rows,), width=group * groups, dtype=dtype)
    got, sort = group_counts(case, torch.arange(rows) % 3, group)
    sections = min(-(-24 // (4 * -(-groups // across))), -(-rows // 32))
    want = model.group_table(
        rows, group * groups, 3, dtype.itemsize, sections=sections, threads=threads * groups,
        slots=slots,
    )  # fmt: skip
    added = 3 * group * groups * dtype.itemsize if sections > 1 else 0
    assert got.loaded == sort.loaded + want.loaded
    assert got.stored == sort.stored + want.stored + added
    # A group has a few functions of its own, in every thread.
    assert want.special <= got.special <= 1.5 * want.special


@every_dtype
def test_long_groups_by_label(dtype: torch.dtype) -> None:
    """Kept in the shared memory of a block, and read by every sweep of a cluster's two."""
    case = make_pair("categorical", "kl_full", batch=(9,), width=8208, dtype=dtype)
    for shared, sweeps, blocks in ((SHARED, 1, 1), (0, 4, 2)):
        with emulation(0, shared=shared):
            got, sort = group_counts(case, torch.arange(9) % 3, 8208)
        want = model.group_table(
            9, 8208, 3, dtype.itemsize, sections=1, threads=128 * blocks, sweeps=sweeps,
            float_sums=True,
        )  # fmt: skip
        added = 3 * 8208 * dtype.itemsize if dtype.itemsize < 4 else 0
        assert got.loaded == sort.loaded + want.loaded
        assert got.stored == sort.stored + want.stored + added
        assert want.special <= got.special <= 1.5 * want.special


@every_dtype
def test_class_table(dtype: torch.dtype) -> None:
    case = make_class("gaussian", batch=(128,), width=512, classes=16, dtype=dtype)
    done = {}
    for table in (False, True):
        done[table] = counted(
            lambda table=table: op("emulated", "class_loss_value_and_grad")(
                case.a, case.table, case.labels, None, None, "gaussian", 1, 1.0, True, 1.0, "sum",
                False, table, False,
            )
        )  # fmt: skip
    tile = 32 // (16 // dtype.itemsize)
    owners = 512 * dtype.itemsize // (64 * 16) * (16 // tile)
    sections = min(2, -(-6 // owners))
    want = model.class_table(128, 512, 16, dtype.itemsize, tile=tile, sections=sections)
    residual = 4 * 128 * 16
    added = 16 * 512 * dtype.itemsize if sections > 1 else 0
    assert done[True].loaded - done[False].loaded == want.loaded
    assert done[True].stored - done[False].stored == want.stored + residual + added


@every_dtype
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
def test_pooling(dtype: torch.dtype, memory: torch.memory_format) -> None:
    x = torch.randn(4, 32, 8, 8).to(dtype).to(memory_format=memory)
    grad = torch.randn(4, 32 * 4)
    for kind in ("mean", "max", "std"):
        got = counted(lambda kind=kind: op("emulated", "grid_pool")(x, kind, 2))
        assert got == model.pool(x.numel(), 4 * 32 * 4, dtype.itemsize)
        back = partial(op("emulated", "grid_pool_backward"), grad, x, kind, 2)
        assert counted(back) == model.pool_backward(kind, x.numel(), dtype.itemsize)


@every_dtype
def test_class_rows(dtype: torch.dtype) -> None:
    case = make_class("gaussian", batch=(24,), width=256, classes=16, dtype=dtype)
    for gradient in (False, True):

        def run(gradient: bool = gradient) -> None:
            op("emulated", "class_loss_value_and_grad")(
                case.a, case.table, case.labels, None, None, "gaussian", 1, 1.0, True, 1.0, "sum",
                gradient, False, False,
            )  # fmt: skip

        want = model.class_rows(24, 256, 16, dtype.itemsize, together=4, gradient=gradient)
        got = counted(run)
        assert (got.stored, got.special) == (want.stored, want.special)
        # Threads beyond the classes read one of them again, from the cache.
        assert want.loaded <= got.loaded <= 2.5 * want.loaded


@every_dtype
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("grid", [1, 2, 4])
def test_pooled_class(dtype: torch.dtype, memory: torch.memory_format, grid: int) -> None:
    x = torch.randn(5, 16, 8, 8).to(dtype).to(memory_format=memory)
    case = make_class("gaussian", batch=(5,), width=16 * grid * grid, classes=12, dtype=dtype)
    for gradient in (False, True):

        def run(gradient: bool = gradient) -> None:
            op("emulated", "pooled_class_loss_value_and_grad")(
                x, case.table, case.labels, None, None, "gaussian", 1.0, True, 1.0, "sum", grid,
                gradient, False, False, False,
            )  # fmt: skip

        want = model.pooled_class(5, 16 * 64, 16 * grid**2, 12, dtype.itemsize, gradient=gradient)
        assert counted(run) == want


@every_dtype
def test_softmax_rows(dtype: torch.dtype) -> None:
    scores, labels = torch.randn(6, 2048), torch.zeros(6, dtype=torch.int64)
    slopes = torch.empty(6, 2048, dtype=dtype)
    got = counted(lambda: op("emulated", "softmax_rows")(scores, labels, None, None, slopes))
    want = model.softmax_rows(6, 2048, dtype.itemsize)
    assert (got.loaded, got.stored) == (want.loaded, want.stored)
    # The largest score moves about log(n) times of n scores, and 512 threads merge theirs.
    assert want.special <= got.special <= 5 * want.special


def test_gram() -> None:
    case = make_gram(batch=128, inner=(32,))
    for twin in (False, True):
        got = counted(lambda twin=twin: case.call(twin, case.x))
        want = model.gram(128, 32, gradient=twin)
        rows = 128 * 32 * 4
        # Beside the tiles: two labels per pair, and a row four times and its first latent once
        # per thread where it gets its length.
        labels, lengths = 2 * 128 * 128 * 8, 4 * rows + 128 * 256 * 4
        assert got.loaded == want.loaded + labels + lengths
        assert got.stored == want.stored + (rows if twin else 0)


@every_dtype
def test_class_means(dtype: torch.dtype) -> None:
    """Three processors have 12 blocks: sections of a class's rows, where these are enough."""
    for rows, width, classes in ((60, 64, 5), (600, 512, 2)):
        x, labels = torch.randn(rows, width).to(dtype), torch.arange(rows) % classes
        got = counted(
            lambda x=x, labels=labels, classes=classes: op("emulated", "class_means")(
                x, labels, classes
            )
        )
        # A block has 64 vectors of a row.
        sections = 1 if rows == 60 else 12 // (classes * width * dtype.itemsize // 1024)
        means = model.class_means(rows, width, classes, dtype.itemsize, sections=sections)
        chunks = -(-rows // 256)
        sort = model.label_sort(rows, classes, chunks, chunks * classes)
        assert (got.loaded, got.stored) == (means.loaded + sort.loaded, means.stored + sort.stored)


@every_dtype
@pytest.mark.parametrize("checked", [False, True])
def test_optimizer_steps(dtype: torch.dtype, checked: bool) -> None:
    options = {"inverse_scale": torch.tensor(0.5), "found_inf": torch.zeros(1)} if checked else {}
    makes = (BlockAdam, lambda p: BlockSGD(p, momentum=0.9), BlockSGD)
    for make, states in zip(makes, (2, 1, 0), strict=True):
        x = [torch.randn(100, 64).to(dtype).requires_grad_(), torch.randn(64).to(dtype)]
        for tensor in x:
            tensor.grad = torch.ones_like(tensor)
        optimizer = make(x)
        size = sum(t.numel() for t in x)
        got = counted(lambda optimizer=optimizer: optimizer.step_block(0, **options))
        want = model.optimizer_step(size, dtype.itemsize, states=states, checked=checked)
        assert got == want


def test_the_documented_table() -> None:
    assert model.table() in (ROOT / "docs" / "gpu-kernels.md").read_text()
