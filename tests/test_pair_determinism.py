"""Bits depend neither on chance nor, in compiled backends, on the number of threads.

The reference is eager PyTorch, whose vector loops split at thread borders.
"""

from __future__ import annotations

import oracle
import pytest
import torch
from cases import make_pair, package_family, pair_functions
from class_cases import make_class
from tolerance import assert_same_bits

from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned", "threads")


def same_every_time(results: list[tuple[torch.Tensor, ...]]) -> None:
    for result in results[1:]:
        for got, want in zip(result, results[0], strict=True):
            assert_same_bits(got, want)


def thread_counts(backend: str) -> list[int]:
    return [2, 2] if backend == "reference" else [1, 2, 1, 2, 2, 2]


def sizes(backend: str) -> tuple[int, int]:
    """Rows and latents: enough for several pieces of work per thread where it counts."""
    return (31, 60) if backend == "reference" else (301, 1000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("table", [False, True])
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_pair(backend: str, family: str, table: bool, dtype: torch.dtype) -> None:
    rows, width = sizes(backend)
    case = make_pair(family, batch=(rows,), width=width)
    options: dict[str, object] = {"weight": torch.rand(rows)}
    b = case.b
    if table:
        b = b[:13].contiguous()
        options["labels"] = torch.randint(13, (rows,))
    member = package_family(case.family)
    for loss in ("kl", "kl_full", "evidence"):
        _, twin, extra = pair_functions(loss)
        results = []
        for count in thread_counts(backend):
            torch.set_num_threads(count)
            value, grads = twin(
                case.a.to(dtype), b.to(dtype), member, wrt=("a", "b"), **extra, **options
            )
            results.append((value, *grads))
        same_every_time(results)


@pytest.mark.parametrize("family", [*oracle.FAMILIES, None], ids=str)
def test_class(backend: str, family: str | None) -> None:
    rows, width = sizes(backend)
    case = make_class(family, batch=(rows,), width=width, classes=13, bias=torch.randn(13))
    results = []
    for count in thread_counts(backend):
        torch.set_num_threads(count)
        value, grads = case.call(True, case.operands(), wrt=case.names)
        results.append((value, *grads))
    same_every_time(results)


def test_row_values_do_not_depend_on_the_other_rows(backend: str) -> None:
    """A row alone gives what it gives in a batch."""
    case = make_pair("bernoulli", batch=(64,), width=333)
    options = ("bernoulli", 1, 1.0, "kl_full", 1.0, "none", True, True)
    together = op(backend, "pair_loss_value_and_grad")(case.a, case.b, None, None, *options)
    for i in (0, 17, 63):
        row = slice(i, i + 1)
        alone = op(backend, "pair_loss_value_and_grad")(
            case.a[row].clone(), case.b[row].clone(), None, None, *options
        )
        for got, want in zip(alone, together, strict=True):
            torch.testing.assert_close(got, want[row], rtol=1e-5, atol=1e-7)
