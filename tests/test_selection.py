"""Which backend serves what: the rules as a table, no device needed."""

from __future__ import annotations

import pytest
import torch

import bll_kernels as bk
from bll_kernels.backends import native, selection
from bll_kernels.schemas import SCHEMAS

CUDA_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("op", sorted({*selection.FUNCTIONS.values()}))
def test_cuda_tensors(op: str) -> None:
    for native_built in (False, True):
        for triton_usable in (False, True):
            has = {"native_built": native_built, "triton_usable": triton_usable}
            assert selection.cuda_choice(op, torch.float64, **has) == "reference"
            for dtype in CUDA_DTYPES:
                chosen = selection.cuda_choice(op, dtype, **has)
                if native_built and op in native.CUDA_OPS:
                    assert chosen == "native"
                else:
                    assert chosen == ("triton" if triton_usable else "reference")


def test_class_losses_on_cuda_by_family_and_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    def choice(family: str, classes: int) -> str:
        return selection.cuda_choice(
            "class_loss", torch.float32, native_built=True, triton_usable=True, family=family,
            classes=classes,
        )  # fmt: skip

    for family in ("gaussian", "gaussian-precision", "bernoulli"):
        assert choice(family, 1024) == "native" and choice(family, 1025) == "triton"
    assert choice("categorical", 2) == choice("gaussian-diagonal", 2) == "triton"
    monkeypatch.setitem(selection.DEVICES, "native", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(selection, "_forced", "native")
    assert bk.backend_for("linear_cross_entropy", device="cuda", classes=1000) == "native"
    with pytest.raises(RuntimeError, match="no CUDA kernel of class_loss for categorical with 2"):
        bk.backend_for("class_evidence_loss", device="cuda", family="categorical", classes=2)


def test_pooled_and_chunked_class_losses_are_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(2, 512, 8, 8)
    monkeypatch.setitem(selection.CUDA_KERNELS, "native", frozenset({"cpu"}))

    def found(tensor: torch.Tensor, kind: str, grid: int, **options: object) -> str:
        return bk.backend_for("class_evidence_loss", tensor, pool=(kind, grid), **options)

    plain = bk.backend_for("class_evidence_loss", x)
    assert found(x, "mean", 4) == found(x.bfloat16(), "mean", 1) == "native-pooled"
    assert found(x, "mean", 4, family="gaussian-precision", classes=1024) == "native-pooled"
    assert found(x, "mean", 5) == plain  # 12,800 latents
    assert found(x, "max", 1) == found(x, "mean", 1, family="bernoulli") == plain
    assert found(x, "mean", 1, classes=1025) == found(x.double(), "mean", 1) == plain
    assert bk.backend_for("posterior_kl", x, pool=("mean", 1)) == plain
    monkeypatch.setitem(selection.DEVICES, "native", frozenset({"cpu", "cuda"}))
    monkeypatch.setitem(selection.CHUNKS, "native", frozenset({"cuda"}))
    monkeypatch.setattr(selection, "_forced", "native")
    many = {"device": "cuda", "classes": 32_000}
    assert bk.backend_for("linear_cross_entropy", **many) == "native-chunked"
    assert selection.select("cuda", torch.float32, "class_loss", "gaussian", 32_000) == "native"
    with pytest.raises(RuntimeError, match="no CUDA kernel of class_loss for bernoulli"):
        bk.backend_for("class_evidence_loss", family="bernoulli", **many)


def test_every_op_is_a_registered_one() -> None:
    assert {*selection.FUNCTIONS.values()} <= {*SCHEMAS}
    assert {*native.CUDA_OPS} <= {*selection.FUNCTIONS.values()}


def test_native_by_name_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(selection.DEVICES, "native", frozenset({"cpu", "cuda"}))
    monkeypatch.setattr(selection, "_forced", "native")
    assert bk.backend_for("posterior_kl", device="cuda") == "native"
    assert bk.backend_for("posterior_kl", device="cpu", dtype=torch.float64) == "native"
    with pytest.raises(RuntimeError, match=r"does not serve torch\.float64"):
        bk.backend_for("posterior_kl", device="cuda", dtype=torch.float64)
    for function, op in selection.FUNCTIONS.items():
        if op not in native.CUDA_OPS:
            with pytest.raises(RuntimeError, match=f"no CUDA kernel of {op}"):
                bk.backend_for(function, device="cuda")


def test_the_cuda_library_says_why_it_is_not_used() -> None:
    if torch.version.cuda is None:
        assert native.CUDA_FAILURE is not None
        assert "not built" in native.CUDA_FAILURE or "no CUDA" in native.CUDA_FAILURE
    assert ("cuda" in selection.DEVICES["native"]) is (native.CUDA_FAILURE is None)
