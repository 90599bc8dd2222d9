"""gram_loss against the oracle, its special rows, and its memory."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from gram_cases import GramCase, check_gram, make_gram
from hypothesis import given
from hypothesis import strategies as st
from tolerance import GRADIENT_L2, assert_close, assert_same_bits, relative_l2
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

import bll_kernels as bk

pytestmark = pytest.mark.usefixtures("poisoned")


def targets(case: GramCase) -> list[GramCase]:
    """The case with every kind of target."""
    vectors = torch.randn(case.x.shape[0], 5).to(case.x.dtype)
    return [
        case,
        case.with_options(label_gram="equal"),
        case.with_options(label_gram="equal", num_classes=None),
        case.with_options(target="identity", num_classes=None),
        case.with_options(target=vectors, num_classes=None),
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("center", [True, False])
def test_dtypes_and_targets(backend: str, dtype: torch.dtype, center: bool) -> None:
    for case in targets(make_gram(dtype=dtype, center=center)):
        check_gram(case)
    case = make_gram(dtype=dtype, center=center, batch=40, inner=(3, 2, 5))
    vectors = torch.randn(40, 2, 3)
    vectors = vectors if dtype.itemsize == 2 else vectors.to(dtype)
    check_gram(case.with_options(target=vectors, num_classes=None))


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_options(backend: str, reduction: str) -> None:
    weight = torch.tensor([1.0, 0.0, 2.0, -0.5, 3.0])
    for case in targets(make_gram(batch=5, reduction=reduction)):
        check_gram(case)
        check_gram(case.with_options(weight=weight, center=False))


@pytest.mark.parametrize("batch", [0, 1, 2, 31, 33, 64, 130])
@pytest.mark.parametrize("width", [0, 1, 2, 17, 64, 300])
def test_shapes(backend: str, batch: int, width: int) -> None:
    """Tails of every tile, one row, no rows, no latents."""
    for center in (True, False):
        check_gram(make_gram(batch=batch, inner=(width,), center=center))
    check_gram(
        make_gram(batch=batch, inner=(width,)).with_options(target="identity", num_classes=None)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradient_accuracy(backend: str, dtype: torch.dtype) -> None:
    case = make_gram(batch=96, inner=(700,), dtype=dtype, classes=10)
    truth = case.x.double().requires_grad_()
    (want,) = torch.autograd.grad(case.oracle(truth) * 1024, truth)
    scaled = case.with_options(weight=torch.full((96,), 1024.0))  # halves: off the subnormals
    _, (got,) = scaled.call(True, case.x)
    assert relative_l2(got, want) <= 2 * GRADIENT_L2[dtype]


def test_the_literature_s_loss(backend: str) -> None:
    """F.mse_loss between the two adjusted cosine matrices of Nokland and Eidnes."""
    x, y = torch.randn(20, 33, requires_grad=True), torch.randint(10, (20,))

    def adjusted(z: Tensor) -> Tensor:
        z = z - z.mean(1, keepdim=True)
        z = z / (1e-8 + z.square().sum(1, keepdim=True).sqrt())
        return (z @ z.t()).clamp(-1, 1)

    theirs = F.mse_loss(adjusted(x), adjusted(F.one_hot(y, 10).float()))
    ours = bk.gram_loss(x, y, num_classes=10)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, x), torch.autograd.grad(theirs, x))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_direction(backend: str, dtype: torch.dtype) -> None:
    """Zero and constant rows are similar to nothing, themselves included, and get no gradient."""
    for center, filling in ((False, 0.0), (True, 0.0), (True, 0.1), (True, 1000.3)):
        case = make_gram(dtype=dtype, center=center, inner=(13,), reduction="none")
        case.x[2], case.x[5] = filling, filling
        for each in targets(case):
            check_gram(each)
        alone = case.with_options(target="identity", num_classes=None)
        value, (grad,) = alone.call(True, case.x)
        assert value[2] == 1 / case.x.shape[0]
        assert (grad[[2, 5]] == 0).all() and (grad[0] != 0).any()
    one_class = make_gram(classes=1, dtype=dtype)
    check_gram(one_class)
    check_gram(one_class.with_options(label_gram="equal"))


def test_scale_and_offset_do_not_matter(backend: str) -> None:
    """Cosines of rows of any size, far from zero too."""
    case = make_gram(batch=6, inner=(40,))
    want = case.call(False, case.x)
    for factor in (1e-30, 1e-6, 1e6, 1e30):
        value, (grad,) = case.call(True, case.x * factor)
        torch.testing.assert_close(value, want)
        (unit,) = case.call(True, case.x)[1]
        torch.testing.assert_close(grad * factor, unit, atol=1e-7, rtol=1e-4)
    shifted = case.with_options(x=case.x + 1000)
    check_gram(shifted)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nonfinite_rows_reach_every_value(backend: str, bad: float) -> None:
    case = make_gram(reduction="none")
    case.x[3, 4] = bad
    value, (grad,) = case.call(True, case.x)
    assert torch.isnan(value).all() and torch.isnan(grad).all()
    case.x[1] = 0.5
    assert (case.call(True, case.x)[1][0][1] == 0).all()


@pytest.mark.parametrize("kind", ["mean", "max", "std"])
def test_pooled_map_in_front(backend: str, kind: str) -> None:
    for memory in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(6, 5, 7, 6).to(memory_format=memory)
        case = make_gram(batch=6, pool=(kind, 2))
        check_gram(case.with_options(x=x))
        check_gram(case.with_options(x=x.bfloat16(), target=torch.randn(6, 4), num_classes=None))
        check_gram(make_gram(batch=6).with_options(x=x))


def test_compact_gradient_is_the_cells(backend: str) -> None:
    x = torch.randn(6, 5, 8, 8)
    case = make_gram(batch=6, pool=("mean", 4))
    cells = F.adaptive_avg_pool2d(x, 4).flatten(1)
    _, (compact,) = case.call(True, x, compact_grad=True)
    _, (want,) = case.with_options(pool=None).call(True, cells)
    torch.testing.assert_close(compact, want.reshape(6, 5, 4, 4))
    assert case.call(True, x, wrt=()) == (case.call(False, x), ())


@pytest.mark.parametrize("reduction", ["none", "sum", "batchmean"])
def test_upstream_gradients(backend: str, reduction: str) -> None:
    case = make_gram(reduction=reduction, weight=torch.rand(9))
    for factor in (0.0, -0.25, 3.5):
        leaf, truth = case.x.clone().requires_grad_(), case.x.double().requires_grad_()
        value = case.call(False, leaf)
        up = factor * torch.linspace(1, 2, max(value.numel(), 1)).reshape(value.shape)
        (got,) = torch.autograd.grad(value, leaf, up)
        (want,) = torch.autograd.grad(case.oracle(truth), truth, up.double())
        assert_close(got, want, scale=want.abs().max() + 1e-6)


def test_gradcheck_and_second_derivatives(backend: str) -> None:
    for case in targets(make_gram(batch=4, inner=(5,), dtype=torch.float64)):
        x = case.x.requires_grad_()
        assert torch.autograd.gradcheck(lambda z, c=case: c.call(False, z), (x,))
        (grad,) = torch.autograd.grad(case.call(False, x), x, create_graph=True)
        with pytest.raises(RuntimeError, match="differentiable once"):
            grad.sum().backward()


def test_target_vectors_are_held_constant(backend: str) -> None:
    x, vectors = torch.randn(5, 4, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    bk.gram_loss(x, vectors).backward()
    assert x.grad is not None and vectors.grad is None


def test_strided_rows(backend: str) -> None:
    case = make_gram(batch=8, inner=(20,))
    outer = torch.full((11, 26), torch.nan)
    outer[2:10, 3:23] = case.x
    check_gram(case.with_options(x=outer[2:10, 3:23]))
    check_gram(case.with_options(x=case.x.t().contiguous().t()))
    check_gram(case.with_options(x=case.x[:1].expand(8, 20)))


def test_same_bits_on_any_number_of_threads(backend: str, threads: None) -> None:
    sizes = (31, 60) if backend == "reference" else (301, 500)
    case = make_gram(batch=sizes[0], inner=(sizes[1],))
    vectors = case.with_options(target=torch.randn(sizes[0], 70), num_classes=None)
    for each in (case, vectors):
        results = []
        for count in [2, 2] if backend == "reference" else [1, 2, 1, 2]:
            torch.set_num_threads(count)
            results.append(each.call(True, case.x))
        for value, (grad,) in results[1:]:
            assert_same_bits(value, results[0][0])
            assert_same_bits(grad, results[0][1][0])


def test_no_gram_matrix_in_memory(backend: str) -> None:
    """Peak memory of the process rises by far less than one B x B matrix."""
    from bench.measure import peak_extra_bytes

    case = make_gram(batch=4096, inner=(8,))
    matrix = 4096 * 4096 * 4
    assert peak_extra_bytes(lambda: case.call(True, case.x)) < matrix / 4


@pytest.mark.slow
def test_compile_without_breaks_or_recompiles(backend: str) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("inductor")

    def loss(x: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        means, counts = bk.class_means(x, labels, 4)
        value = bk.gram_loss(x, labels, num_classes=4) + bk.gram_loss(x, "identity", center=False)
        return value + means.square().sum() + bk.gram_loss(x, x[:, :5]), counts

    compiled = torch.compile(loss, backend=counter, fullgraph=True)
    for batch in (8, 5, 12, 7, 3, 9, 16, 4, 6, 11):
        labels = torch.randint(4, (batch,))
        results = []
        for function in (loss, compiled):
            x = torch.randn(batch, 12, generator=torch.Generator().manual_seed(batch))
            x.requires_grad_()
            value, counts = function(x, labels)
            value.backward()
            results.append((value.detach(), counts, x.grad))
        for want, got in zip(*results, strict=True):
            torch.testing.assert_close(got, want)
    assert counter.frame_count <= 2, counter.frame_count
    torch._dynamo.reset()


@st.composite
def gram_cases(draw: st.DrawFn) -> GramCase:
    batch = draw(st.one_of(st.integers(0, 9), st.sampled_from([33, 70])))
    inner = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=3)))
    classes, seed = draw(st.integers(1, 6)), draw(st.integers(0, 2**30))
    dtype = draw(st.sampled_from(DTYPES))
    weight = torch.rand(batch) * 2 - 0.5 if draw(st.booleans()) else None
    case = make_gram(
        batch=batch, inner=inner, classes=classes, dtype=dtype, seed=seed,
        center=draw(st.booleans()), weight=weight,
        label_gram=draw(st.sampled_from(["centered", "equal"])),
        reduction=draw(st.sampled_from(["none", "sum", "batchmean"])),
    )  # fmt: skip
    return draw(st.sampled_from(targets(case)))


@pytest.mark.slow
@given(case=gram_cases())
def test_random_cases(backend: str, case: GramCase) -> None:
    check_gram(case)
