"""The cases of the GPU driver: peers that a CUDA graph can hold, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.gpu.cases import Case, cases
from bench.gpu.map_cases import map_cases
from bench.gpu.step_cases import step_cases

#: What waits for the device, or has a size that only the device knows.
WAITING = ("bincount", "_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero")
CASES = [*cases("cpu", True), *step_cases("cpu", True), *map_cases("cpu", True)]


class Capturing(TorchDispatchMode):
    """Refuses what a capture on a GPU refuses, with "meta" for the GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(WAITING):
            raise AssertionError(f"{name} waits for the device")
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        if any(x.is_meta for x in given) and any(x.device.type == "cpu" for x in given):
            raise AssertionError(f"{name} reads a tensor of the host")
        return func(*args, **(kwargs or {}))


def eager_peers(case: Case) -> list[str]:
    return [name for name in ("eager", "distributions") if name in case.peers]


# Without optimisers, whose capturable form exists on a GPU only.
@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.name.startswith("adam")], ids=lambda case: case.name
)
def test_eager_peers_can_be_captured(case: Case) -> None:
    inputs = tuple(x.to("meta") for x in case.make(torch.Generator().manual_seed(0)))
    assert eager_peers(case)
    for name in eager_peers(case):
        with Capturing():
            outputs = case.peers[name](inputs)
        assert all(x.is_meta for x in outputs), name


@pytest.mark.parametrize(
    "form",
    [
        lambda x: torch.bincount(x.long(), minlength=3),
        lambda x: torch.where(x > 0, torch.tensor(1.0), torch.tensor(-1.0)),
        lambda x: float(x.sum()),
    ],
    ids=["bincount", "where", "item"],
)
def test_what_cannot_be_captured_is_seen(form: Any) -> None:
    said = "waits for the device|a tensor of the host"
    with pytest.raises(AssertionError, match=said), Capturing():
        form(torch.ones(4, device="meta"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_eager_peers_compute_what_is_measured(case: Case) -> None:
    inputs = case.make(torch.Generator().manual_seed(1))
    for name in eager_peers(case):
        fresh = tuple(x.clone() for x in inputs)
        # As in a dry run: a handful of rounded numbers scatters around the error of many.
        assert case.error(inputs, case.peers[name](fresh)) <= 20 * case.gate, name
