"""What only a device can show: streams, graphs, repeatability, syncs, and offsets past 2^31."""

from __future__ import annotations

import pytest
import torch
from calls import Call, every_call, pair
from device import require_device
from tolerance import assert_same_bits

import bll_kernels as bk
from bll_kernels.optim import BlockAdam, BlockSGD

require_device()
pytest_plugins = ["device"]
pytestmark = pytest.mark.usefixtures("poisoned")
REPEATS = 250
REPLAYS = 100
#: Long enough that a kernel on another stream would read before the producer has written.
DELAY_CYCLES = 20_000_000


def assert_same(got: tuple[torch.Tensor, ...], want: tuple[torch.Tensor, ...], call: Call) -> None:
    for left, right in zip(got, want, strict=True):
        try:
            assert_same_bits(left, right)
        except AssertionError as error:
            raise AssertionError(f"{call.name}: {error}") from error


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_same_bits_every_time(gpu: str, dtype: torch.dtype) -> None:
    for call in every_call(gpu, dtype):
        want = call.run(*call.inputs)
        for _ in range(REPEATS):
            assert_same(call.run(*call.inputs), want, call)


def test_no_host_sync(gpu: str) -> None:
    for call in every_call(gpu):
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call.run(*call.inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_backward_without_host_sync(gpu: str) -> None:
    a = torch.randn(33, 100, device="cuda", requires_grad=True)
    b = torch.randn(33, 100, device="cuda", requires_grad=True)
    loss = bk.posterior_kl(a, b, "bernoulli", stop_posterior=False)
    loss.backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        (3 * bk.posterior_kl(a, b, "bernoulli", stop_posterior=False)).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_graph_replays_follow_their_inputs(gpu: str) -> None:
    for call in every_call(gpu):
        static = tuple(x.clone() for x in call.inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            call.run(*static)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            outputs = call.run(*static)
        for replay in range(REPLAYS):
            fresh = torch.randn_like(call.inputs[0])
            static[0].copy_(fresh)
            graph.replay()
            if replay % 10 == 0:
                want = call.run(fresh, *call.inputs[1:])
                assert_same(tuple(x.clone() for x in outputs), want, call)


def test_two_streams_with_late_producers(gpu: str) -> None:
    for call in every_call(gpu):
        want = call.run(*call.inputs)
        mirrored = call.run(-call.inputs[0], *call.inputs[1:])
        late = [torch.full_like(call.inputs[0], float("nan")) for _ in range(2)]
        streams = [torch.cuda.Stream() for _ in range(2)]
        torch.cuda.synchronize()
        results = []
        for stream, target, sign in zip(streams, late, (1, -1), strict=True):
            with torch.cuda.stream(stream):
                torch.cuda._sleep(DELAY_CYCLES)
                target.copy_(sign * call.inputs[0])
                results.append(call.run(target, *call.inputs[1:]))
        torch.cuda.synchronize()
        assert_same(results[0], want, call)
        assert_same(results[1], mirrored, call)


@pytest.mark.parametrize("make", [BlockAdam, BlockSGD], ids=lambda make: make.__name__)
def test_optimiser_steps_in_a_graph(gpu: str, make: type[torch.optim.Optimizer]) -> None:
    """Captured once and replayed, steps go on as those of torch.optim do, without a sync."""
    shapes, rate = ((300, 65), (65,), (1,)), 0.01
    ours = [torch.randn(shape, device="cuda").requires_grad_() for shape in shapes]
    twins = [x.detach().double().requires_grad_() for x in ours]
    theirs = torch.optim.Adam if make is BlockAdam else torch.optim.SGD
    mine, other = make(ours, lr=rate), theirs(twins, lr=rate)
    for x, twin in zip(ours, twins, strict=True):
        x.grad, twin.grad = torch.empty_like(x), torch.empty_like(twin)

    def give() -> None:
        for x, twin in zip(ours, twins, strict=True):
            x.grad.normal_()
            twin.grad.copy_(x.grad)

    give()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        mine.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    other.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mine.step()
    for _ in range(REPLAYS):
        give()
        graph.replay()
        other.step()
    for x, twin in zip(ours, twins, strict=True):
        torch.testing.assert_close(x.double(), twin, rtol=1e-4, atol=1e-5)


def test_inputs_are_left_alone(gpu: str) -> None:
    for call in every_call(gpu):
        before = tuple(x.clone() for x in call.inputs)
        call.run(*call.inputs)
        assert_same(call.inputs, before, call)


def test_float64_is_refused_by_name(gpu: str) -> None:
    x = torch.randn(3, 4, device="cuda", dtype=torch.float64)
    with pytest.raises(RuntimeError, match="float64"):
        bk.posterior_kl(x, x, "bernoulli")


@pytest.mark.slow
@pytest.mark.parametrize("labelled", [False, True], ids=["dense", "by label"])
def test_offsets_past_two_to_the_31(gpu: str, labelled: bool) -> None:
    width = 1 << 16
    rows = (1 << 31) // width + 3
    call = pair("bernoulli", rows, width, torch.bfloat16, labelled)
    a, b, labels = call.inputs
    _, da, db = call.run(a, b, labels)
    tail = slice(rows - 2, rows)
    _, want, want_b = call.run(a[tail], b if labelled else b[tail], labels[tail])
    # Means over the batch: two rows weigh more than many.
    torch.testing.assert_close(da[tail].float() * (rows / 2), want.float(), rtol=2e-2, atol=1e-6)
    if not labelled:
        torch.testing.assert_close(
            db[tail].float() * (rows / 2), want_b.float(), rtol=2e-2, atol=1e-6
        )
    assert torch.isfinite(db).all()
