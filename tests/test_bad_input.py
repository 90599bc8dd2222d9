"""Bad arguments: the exception, the argument it names, and nothing changed; and odd good ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import oracle
import pytest
import torch
from cases import package_family
from oracle import OracleFamily
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.ops import op

pytestmark = pytest.mark.usefixtures("poisoned")

A = torch.linspace(-1, 1, 12).reshape(3, 4)
MAP = torch.linspace(-1, 1, 96).reshape(3, 2, 4, 4)
TABLE = torch.linspace(1, 2, 20).reshape(5, 4)
LABELS = torch.tensor([0, 4, 2])
SPARSE, COMPLEX = A.to_sparse(), torch.complex(A, A)
META = A.to("meta")


def kl(a: Any = A, b: Any = A, family: Any = "bernoulli", **options: Any) -> Any:
    return bk.posterior_kl(a, b, family, **options)


def kl_twin(a: Any = A, b: Any = A, family: Any = "bernoulli", **options: Any) -> Any:
    return bk.posterior_kl_value_and_grad(a, b, family, **options)


def evidence(a: Any = A, b: Any = A, family: Any = "bernoulli", **options: Any) -> Any:
    return bk.evidence_loss(a, b, family, **options)


def classes(
    a: Any = A, table: Any = TABLE, labels: Any = LABELS, family: Any = "bernoulli", **options: Any
) -> Any:
    return bk.class_evidence_loss(a, table, labels, family, **options)


def classes_twin(
    a: Any = A, table: Any = TABLE, labels: Any = LABELS, family: Any = "bernoulli", **options: Any
) -> Any:
    return bk.class_evidence_loss_value_and_grad(a, table, labels, family, **options)


def linear(x: Any = A, weight: Any = TABLE, labels: Any = LABELS, **options: Any) -> Any:
    return bk.linear_cross_entropy(x, weight, labels, **options)


def gram(x: Any = A, target: Any = LABELS, num_classes: Any = 5, **options: Any) -> Any:
    return bk.gram_loss(x, target, num_classes=num_classes, **options)


def gram_twin(x: Any = A, target: Any = "identity", **options: Any) -> Any:
    return bk.gram_loss_value_and_grad(x, target, **options)


def means(x: Any = A, labels: Any = LABELS, num_classes: Any = 5, **options: Any) -> Any:
    return bk.class_means(x, labels, num_classes, **options)


def pool(x: Any = MAP, kind: Any = "mean", grid: Any = 2, **options: Any) -> Any:
    return bk.grid_pool(x, kind, grid, **options)


def standard(x: Any = A) -> Any:
    return bk.standardize_channels(x)


#: (call, arguments, exception, words its message must hold: the argument, expected, got)
CASES: list[tuple[Callable[..., Any], dict[str, Any], type[Exception], tuple[str, ...]]] = [
    (kl, {"a": [1.0]}, TypeError, ("a:", "tensor", "list")),
    (kl, {"a": A.long()}, TypeError, ("a:", "float32", "int64")),
    (kl, {"a": A > 0}, TypeError, ("a:", "bool")),
    (kl, {"a": COMPLEX, "b": COMPLEX}, TypeError, ("a:", "complex64")),
    (kl, {"a": SPARSE}, TypeError, ("a:", "dense", "sparse")),
    (kl, {"b": SPARSE}, TypeError, ("b:", "dense", "sparse")),
    (kl, {"b": None}, TypeError, ("b:", "tensor", "NoneType")),
    (kl, {"b": A.double()}, TypeError, ("b:", "float32", "float64")),
    (kl, {"b": A.bfloat16()}, TypeError, ("b:", "float32", "bfloat16")),
    (kl, {"a": A.bfloat16(), "b": A.half()}, TypeError, ("b:", "bfloat16", "float16")),
    (kl, {"a": A.double(), "b": A}, TypeError, ("b:", "float64", "float32")),
    (kl, {"b": META}, ValueError, ("b:", "cpu", "meta")),
    (kl, {"b": A[:2]}, ValueError, ("b:", "(3, 4)", "(2, 4)")),
    (kl, {"b": A[:, :3]}, ValueError, ("b:", "(3, 4)", "(3, 3)")),
    (kl, {"a": torch.tensor(1.0)}, ValueError, ("a:", "dimension", "()")),
    (kl, {"family": "gausian"}, ValueError, ("family:", "bernoulli", "'gausian'")),
    (kl, {"family": 3}, TypeError, ("family:", "name", "int")),
    (kl, {"family": "gaussian-diagonal"}, ValueError, ("a:", "2", "(3, 4)")),
    (
        kl,
        {"family": bk.Family("categorical", group=2), "a": A[:, :3], "b": A[:, :3]},
        ValueError,
        ("a:", "group=2", "(3, 3)"),
    ),
    (kl, {"direction": "forward"}, ValueError, ("direction:", "rho_alpha", "'forward'")),
    (kl, {"stop_posterior": "yes"}, TypeError, ("stop_posterior:", "bool", "str")),
    (kl, {"reduction": "mean"}, ValueError, ("reduction:", "batchmean", "'mean'")),
    (kl, {"reduction": None}, TypeError, ("reduction:", "string", "NoneType")),
    (kl, {"tilt": "1"}, TypeError, ("tilt:", "number", "str")),
    (kl, {"tilt": float("nan")}, ValueError, ("tilt:", "finite", "nan")),
    (
        kl,
        {"tilt": 0.0, "family": "gaussian-precision"},
        ValueError,
        ("tilt:", "positive", "0.0"),
    ),
    (kl, {"weight": torch.ones(4)}, ValueError, ("weight:", "(3,)", "(4,)")),
    (kl, {"weight": torch.ones(3, dtype=torch.int64)}, TypeError, ("weight:", "int64")),
    (kl, {"weight": 2.0}, TypeError, ("weight:", "tensor", "float")),
    (kl, {"weight": torch.ones(3, device="meta")}, ValueError, ("weight:", "cpu", "meta")),
    (
        kl,
        {"weight": torch.ones(3, requires_grad=True)},
        ValueError,
        ("weight:", "constant", "gradient"),
    ),
    (kl, {"labels": LABELS}, ValueError, ("labels:", "[0, 3)", "4")),
    (kl, {"b": TABLE, "labels": -LABELS}, ValueError, ("labels:", "[0, 5)", "-4")),
    (kl, {"b": TABLE, "labels": LABELS.float()}, TypeError, ("labels:", "integer", "float32")),
    (kl, {"b": TABLE, "labels": LABELS[:2]}, ValueError, ("labels:", "(3,)", "(2,)")),
    (kl, {"b": TABLE, "labels": [0, 1, 2]}, TypeError, ("labels:", "tensor", "list")),
    (kl, {"b": TABLE[:, :3], "labels": LABELS}, ValueError, ("b:", "classes", "(5, 3)")),
    (kl, {"b": TABLE[0], "labels": LABELS}, ValueError, ("b:", "classes", "(4,)")),
    (kl, {"pool": "mean"}, TypeError, ("pool:", "pair", "'mean'")),
    (kl, {"a": MAP, "pool": ("median", 2)}, ValueError, ("pool", "mean", "'median'")),
    (kl, {"a": MAP, "pool": ("mean", 0)}, ValueError, ("pool", "1", "0")),
    (kl, {"a": MAP, "pool": ("mean", 2.0)}, TypeError, ("pool", "integer", "float")),
    (kl, {"pool": ("mean", 2)}, ValueError, ("a:", "[B, C, H, W]", "(3, 4)")),
    (
        kl,
        {"a": MAP, "pool": ("mean", 2), "family": "gaussian-diagonal"},
        ValueError,
        ("pool:", "gaussian-diagonal"),
    ),
    (kl_twin, {"wrt": ("c",)}, ValueError, ("wrt:", "a, b", "'c'")),
    (kl_twin, {"wrt": ("a", "a")}, ValueError, ("wrt:", "distinct", "'a'")),
    (kl_twin, {"wrt": "a"}, TypeError, ("wrt:", "sequence", "'a'")),
    (kl_twin, {"compact_grad": True}, ValueError, ("compact_grad:", "mean", "None")),
    (
        kl_twin,
        {"a": MAP, "b": torch.zeros(8), "pool": ("max", 2), "compact_grad": True},
        ValueError,
        ("compact_grad:", "mean", "max"),
    ),
    (kl_twin, {"compact_grad": 1}, TypeError, ("compact_grad:", "bool", "int")),
    (evidence, {"b": A[:2]}, ValueError, ("b:", "(3, 4)", "(2, 4)")),
    (evidence, {"reduction": "avg"}, ValueError, ("reduction:", "sum", "'avg'")),
    (classes, {"table": TABLE[:0]}, ValueError, ("table:", "at least one class", "(0, 4)")),
    (classes, {"table": TABLE[:, :2]}, ValueError, ("table:", "4", "(5, 2)")),
    (classes, {"table": TABLE.double()}, TypeError, ("table:", "float32", "float64")),
    (classes, {"labels": LABELS + 1}, ValueError, ("labels:", "[0, 5)", "5")),
    (classes, {"labels": None}, TypeError, ("labels:", "tensor", "NoneType")),
    (classes, {"labels": LABELS[None]}, ValueError, ("labels:", "(3,)", "(1, 3)")),
    (classes, {"labels": LABELS.to("meta")}, ValueError, ("labels:", "cpu", "meta")),
    (classes, {"bias": torch.zeros(4)}, ValueError, ("bias:", "(5,)", "(4,)")),
    (classes, {"bias": torch.zeros(5).long()}, TypeError, ("bias:", "int64")),
    (classes, {"weight": torch.ones(3, 1)}, ValueError, ("weight:", "(3,)", "(3, 1)")),
    (classes, {"normalize_message": 1}, TypeError, ("normalize_message:", "bool", "int")),
    (
        classes,
        {"normalize_message": True, "family": "gaussian-precision"},
        ValueError,
        ("normalize_message:", "gaussian-precision"),
    ),
    (classes, {"a": A.half(), "table": TABLE.bfloat16()}, TypeError, ("table:", "bfloat16")),
    (classes_twin, {"wrt": ("bias",)}, ValueError, ("wrt:", "bias", "None")),
    (classes_twin, {"wrt": ("b",)}, ValueError, ("wrt:", "table", "'b'")),
    (linear, {"x": COMPLEX}, TypeError, ("x:", "complex64")),
    (linear, {"weight": TABLE[:, :2]}, ValueError, ("weight:", "4", "(5, 2)")),
    (linear, {"sample_weight": torch.ones(2)}, ValueError, ("sample_weight:", "(3,)", "(2,)")),
    (linear, {"bias": torch.zeros(1)}, ValueError, ("bias:", "(5,)", "(1,)")),
    (gram, {"x": SPARSE}, TypeError, ("x:", "dense", "sparse")),
    (gram, {"x": A[0]}, ValueError, ("x:", "2 dimensions", "(4,)")),
    (gram, {"target": [0, 1, 2]}, TypeError, ("target:", "labels", "'identity'", "list")),
    (gram, {"target": "eye"}, ValueError, ("target:", "identity", "'eye'")),
    (gram, {"target": LABELS > 0}, TypeError, ("target:", "integer", "bool")),
    (gram, {"target": LABELS.to_sparse()}, TypeError, ("target:", "dense", "sparse")),
    (gram, {"target": LABELS[:2]}, ValueError, ("target:", "(3,)", "(2,)")),
    (gram, {"target": LABELS.to("meta")}, ValueError, ("target:", "cpu", "meta")),
    (gram, {"target": LABELS + 1}, ValueError, ("target:", "[0, 5)", "5")),
    (gram, {"target": LABELS - 1, "label_gram": "equal"}, ValueError, ("target:", "[0, 5)")),
    (gram, {"target": A[:2], "num_classes": None}, ValueError, ("target:", "[3, ...]", "(2, 4)")),
    (gram, {"target": A.double(), "num_classes": None}, TypeError, ("target:", "float32")),
    (gram, {"target": COMPLEX, "num_classes": None}, TypeError, ("target:", "complex64")),
    (gram, {"target": A}, ValueError, ("num_classes:", "None", "5")),
    (gram, {"target": "identity"}, ValueError, ("num_classes:", "labels", "5")),
    (gram, {"num_classes": None}, ValueError, ("num_classes:", "centered", "None")),
    (gram, {"num_classes": 0}, ValueError, ("num_classes:", "1", "0")),
    (gram, {"num_classes": 5.0}, TypeError, ("num_classes:", "integer", "float")),
    (gram, {"label_gram": "onehot"}, ValueError, ("label_gram:", "centered", "'onehot'")),
    (gram, {"center": 1}, TypeError, ("center:", "bool", "int")),
    (gram, {"weight": torch.ones(4)}, ValueError, ("weight:", "(3,)", "(4,)")),
    (gram, {"reduction": "mean"}, ValueError, ("reduction:", "batchmean", "'mean'")),
    (gram, {"pool": ("mean", 2)}, ValueError, ("x:", "[B, C, H, W]", "(3, 4)")),
    (gram, {"x": MAP, "pool": ("mean", 0)}, ValueError, ("pool", "1", "0")),
    (gram_twin, {"wrt": ("target",)}, ValueError, ("wrt:", "x", "'target'")),
    (gram_twin, {"compact_grad": True}, ValueError, ("compact_grad:", "mean", "None")),
    (means, {"x": A.long()}, TypeError, ("x:", "float32", "int64")),
    (means, {"x": torch.tensor(1.0)}, ValueError, ("x:", "1 dimension", "()")),
    (means, {"labels": LABELS.float()}, TypeError, ("labels:", "integer", "float32")),
    (means, {"labels": LABELS[:2]}, ValueError, ("labels:", "(3,)", "(2,)")),
    (means, {"num_classes": 4}, ValueError, ("labels:", "[0, 4)", "4")),
    (means, {"num_classes": 0}, ValueError, ("num_classes:", "1", "0")),
    (means, {"num_classes": True}, TypeError, ("num_classes:", "integer", "bool")),
    (means, {"pool": ("mean", 2)}, ValueError, ("x:", "[B, C, H, W]", "(3, 4)")),
    (pool, {"x": A}, ValueError, ("x:", "[B, C, H, W]", "(3, 4)")),
    (pool, {"x": MAP.long()}, TypeError, ("x:", "int64")),
    (pool, {"x": MAP[:, :, :0]}, ValueError, ("x:", "pixel", "(3, 2, 0, 4)")),
    (pool, {"kind": "median"}, ValueError, ("kind:", "max", "'median'")),
    (pool, {"grid": True}, TypeError, ("grid:", "integer", "bool")),
    (pool, {"grid": -1}, ValueError, ("grid:", "1", "-1")),
    (pool, {"standardize": "yes"}, TypeError, ("standardize:", "bool", "str")),
    (
        pool,
        {"x": MAP[:1], "grid": 1, "standardize": True},
        ValueError,
        ("standardize:", "two values", "one"),
    ),
    (standard, {"x": A[0]}, ValueError, ("x:", "[B, C, ...]", "(4,)")),
    (standard, {"x": A.long()}, TypeError, ("x:", "float32", "int64")),
    (standard, {"x": A[:1]}, ValueError, ("standardize:", "two values", "one")),
]


def name(case: tuple[Any, ...]) -> str:
    return f"{case[0].__name__}-{'-'.join(case[1])}-{case[2].__name__}"


@pytest.mark.parametrize("case", CASES, ids=name)
def test_message_and_nothing_changed(backend: str, case: tuple[Any, ...]) -> None:
    call, arguments, error, words = case
    owned = [A, MAP, TABLE, LABELS]
    owned += [x for x in arguments.values() if isinstance(x, torch.Tensor)]
    owned = [x for x in owned if x.device.type == "cpu" and x.layout == torch.strided]
    owned = [x for x in owned if not x.is_complex() and x.dtype != torch.bool]
    before = [x.detach().clone() for x in owned]
    with pytest.raises(error) as caught:
        call(**arguments)
    message = str(caught.value)
    for word in words:
        assert word in message, message
    for old, new in zip(before, owned, strict=True):
        assert_same_bits(new.detach(), old)


def test_there_are_enough_cases() -> None:
    assert len(CASES) >= 40
    assert len({name(case) + str(case[3]) for case in CASES}) == len(CASES)


FAMILY_OPTIONS = [
    ({"tau": 0.0}, ValueError, "tau"),
    ({"tau": float("inf")}, ValueError, "tau"),
    ({"tau": "1"}, TypeError, "tau"),
    ({"group": 0}, ValueError, "group"),
    ({"group": 2.0}, TypeError, "group"),
]


@pytest.mark.parametrize("case", FAMILY_OPTIONS, ids=str)
def test_family_options(case: tuple[dict[str, Any], type[Exception], str]) -> None:
    options, error, word = case
    with pytest.raises(error, match=word):
        bk.Family("gaussian", **options)


def test_backends_by_name() -> None:
    with (
        pytest.raises(ValueError, match=r"backend: expected one of .*reference.*'gpu'"),
        bk.use_backend("gpu"),
    ):
        pass
    with pytest.raises(ValueError, match="function: expected one of"):
        bk.backend_for("no_such_function")
    with pytest.raises(ValueError, match="dtype: expected"):
        bk.backend_for("posterior_kl", dtype=torch.int32)
    missing = [name for name, reason in bk.available().items() if reason is not None]
    for name in missing:
        with pytest.raises(RuntimeError, match="is not available"), bk.use_backend(name):
            pass


def test_ops_refuse_labels_out_of_range(backend: str) -> None:
    """Called directly, past the public checks, a label still never reads foreign memory."""
    for labels in (LABELS + 1, -LABELS - 1, LABELS + 2**40):
        options = ("bernoulli", 1, 1.0, "kl", 1.0, "sum")
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            op(backend, "pair_loss")(A, TABLE, labels, None, *options)
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            op(backend, "class_loss")(
                A, TABLE, labels, None, None, "bernoulli", 1, 1.0, False, 1.0, "sum"
            )
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            op(backend, "class_means")(A, labels, 5)
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            op(backend, "class_means_backward")(TABLE, labels, torch.ones(5, dtype=torch.int64))


EMPTY_SHAPES = [(0, 4), (3, 0), (0, 0), (2, 0, 4), (0,), (2, 3, 0)]


@pytest.mark.parametrize("shape", EMPTY_SHAPES, ids=str)
@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_nothing_in_nothing_out(backend: str, family: str, shape: tuple[int, ...]) -> None:
    member = OracleFamily(family)
    inner = shape if member.planes == 1 else (*shape[:-1], 2, shape[-1])
    a, batch = torch.zeros(inner), shape[:-1]
    for reduction in ("none", "sum", "batchmean"):
        for twin in (bk.posterior_kl_value_and_grad, bk.evidence_loss_value_and_grad):
            value, (da, db) = twin(
                a, a, package_family(member), wrt=("a", "b"), reduction=reduction
            )
            assert value.shape == (batch if reduction == "none" else ())
            assert (value == 0).all() and da.shape == db.shape == a.shape
        table = torch.zeros((2, *inner[len(batch) :]))
        labels = torch.zeros(batch, dtype=torch.int64)
        value, (da, dtable) = bk.class_evidence_loss_value_and_grad(
            a, table, labels, package_family(member), wrt=("a", "table"), reduction=reduction
        )
        assert value.shape == (batch if reduction == "none" else ())
        if not value.numel() or 0 in batch:
            assert (value == 0).all()
        else:  # no latents say nothing: both classes are equally likely
            want = torch.tensor(2.0).log() * (labels.numel() if reduction == "sum" else 1)
            torch.testing.assert_close(value, want.expand(value.shape))
        assert da.shape == a.shape and (dtable == 0).all()


@pytest.mark.parametrize("family", oracle.FAMILIES)
def test_a_table_nobody_read_has_zero_gradient(backend: str, family: str) -> None:
    member = OracleFamily(family)
    inner = (2, 4) if member.planes == 2 else (4,)
    labels = torch.zeros(0, dtype=torch.int64)
    for twin in (bk.posterior_kl_value_and_grad, bk.evidence_loss_value_and_grad):
        value, (grad,) = twin(
            torch.zeros(0, *inner),
            torch.ones(3, *inner),
            package_family(member),
            labels=labels,
            wrt=("b",),
        )
        assert value == 0 and grad.shape == (3, *inner) and (grad == 0).all()


def test_one_row_without_a_batch(backend: str) -> None:
    """A 1-D a has batch shape (): one row."""
    row, b = A[0], TABLE[0]
    value, (da,) = bk.posterior_kl_value_and_grad(row, b, "bernoulli", reduction="none")
    assert value.shape == () and da.shape == row.shape
    torch.testing.assert_close(value, bk.posterior_kl(row[None], b[None], "bernoulli"))
    label = torch.tensor(3)
    value = bk.class_evidence_loss(row, TABLE, label, "bernoulli", reduction="none")
    assert value.shape == ()
    want = bk.class_evidence_loss(row[None], TABLE, label[None], "bernoulli")
    torch.testing.assert_close(value, want)


def test_nested_tensors() -> None:
    """Strided by their layout, and without a shape to check."""
    nested = torch.nested.nested_tensor([A[0], A[1]], layout=torch.strided)
    with pytest.raises(TypeError, match=r"^a: expected a dense tensor, got a nested tensor$"):
        bk.posterior_kl(nested, A, "bernoulli")
    with pytest.raises(TypeError, match=r"^labels: expected a dense tensor, got a nested tensor$"):
        bk.class_evidence_loss(A, TABLE, nested, "bernoulli")
