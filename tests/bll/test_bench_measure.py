"""What a benchmark believes: accuracy first, poisoned memory, limits, missing peers, budgets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from bll.bench import measure as measuring
from bll.bench.cases import Case, Inputs, Missing, Values, differentiated
from bll.bench.class_cases import gram_case
from bll.bench.limits import Limits
from bll.bench.measure import Bench, Clock, measure
from bll.bench.memory import poisoned
from bll.bench.pair_cases import FAMILIES, pair_case
from bll.bench.suites import kernel_cases, tasks_under
from bll.bench.timers import CpuTimer, Prepared, compare, interleave


class CountedTimer:
    """Takes fixed times in place of real ones: the first call given is ours."""

    name = "counted"

    def __init__(self, *seconds: float) -> None:
        self.seconds = list(seconds)

    def sets(self, set_bytes: int) -> int:
        return 2

    def prepare(self, calls: Sequence[Callable[[], object]]) -> Prepared:
        for call in calls:
            call()
        seconds = self.seconds.pop(0)
        return Prepared(lambda: seconds, self.name)


class KnownLimits(Limits):
    """A machine whose limits are known."""

    def copy_rate(self, moved: int) -> float:
        return 1e9

    def stream_rate(self, moved: int) -> float:
        return 1.2e9

    def matmul_rate(self, dtype: torch.dtype = torch.float32) -> float:
        return 1e9


def bench(*seconds: float, clock: Clock | None = None) -> Bench:
    timer = CountedTimer(*seconds)
    return Bench(timer, KnownLimits(timer, "cpu"), "cpu", 3, clock or Clock(None))


def squares(a: Tensor) -> Tensor:
    return a.square().sum() / a.shape[0]


def ours(inputs: Inputs) -> Values:
    (a,) = inputs
    return squares(a), 2 * a / a.shape[0]


CASE = Case(
    "squares",
    lambda generator: (torch.randn(40, 5, generator=generator),),
    ours,
    {"eager autograd": differentiated(squares, 1)},
    squares,
    1,
    (0,),
    1e-6,
    moved_bytes=1000,
)


def test_an_entry_says_all_that_a_reader_needs():
    entry = measure(CASE, bench(2e-6, 6e-6, 1e-6))
    assert entry["rejected"] is None
    assert entry["gate"]["passed"] and 0 < entry["gate"]["error"] < 1e-6
    assert entry["ours"]["seconds"] == 2e-6 and entry["ours"]["samples"] == [2e-6] * 3
    peer = entry["peers"]["eager autograd"]
    assert peer["ratio"] == pytest.approx(3.0) and peer["error"] < 1e-6
    assert entry["bytes_per_second"] == pytest.approx(5e8)
    assert entry["of_limit"] == pytest.approx(0.5) and entry["bound_by"] == "copy"
    assert entry["hot_seconds"] == 1e-6
    assert entry["energy"] is None and entry["energy_reason"]
    assert entry["device_state"]["logical_processors"] >= 1


def wrong(inputs: Inputs) -> Values:
    value, gradient = ours(inputs)
    return value, gradient * (1 + 1e-5)


def wrong_value(inputs: Inputs) -> Values:
    value, gradient = ours(inputs)
    return value * 1.01, gradient


def unwritten(inputs: Inputs) -> Values:
    value, gradient = ours(inputs)
    left = torch.empty_like(gradient)
    left[:-1] = gradient[:-1]
    return value, left


@pytest.mark.parametrize("form", [wrong, wrong_value, unwritten])
def test_a_wrong_form_is_not_timed(form):
    # The timer has no times to give: asking it would raise.
    entry = measure(dataclasses.replace(CASE, ours=form), bench())
    assert not entry["gate"]["passed"]
    assert "is above 1.0e-06" in entry["rejected"]
    assert "ours" not in entry


def test_an_impossible_time_is_rejected():
    entry = measure(CASE, bench(0.7e-6, 6e-6, 1e-6))
    assert entry["of_limit"] == pytest.approx(1.43, abs=0.01)
    assert "1.43 of the measured copy limit" in entry["rejected"]
    with_products = dataclasses.replace(CASE, matmul_flops=5000)
    entry = measure(with_products, bench(2e-6, 6e-6, 1e-6))
    assert entry["bound_by"] == "matmul" and "matmul limit" in entry["rejected"]


def test_reading_more_than_writing_may_pass_a_copy_but_not_the_fastest_stream():
    entry = measure(CASE, bench(0.9e-6, 6e-6, 1e-6))
    assert entry["of_limit"] == pytest.approx(1.11, abs=0.01)
    assert entry["rejected"] is None


def test_the_fastest_stream_is_measured():
    limits = Limits(CpuTimer(), "cpu")
    moved = 1 << 22
    assert limits.stream_rate(moved) >= limits.copy_rate(moved) > 1e8


def test_a_peer_that_cannot_run_is_missing_with_its_reason():
    def absent(inputs: Inputs) -> Values:
        raise Missing("not installed")

    def breaks(inputs: Inputs) -> Values:
        raise RuntimeError("no such device\nsecond line")

    peers = {"absent": absent, "breaks": breaks, **CASE.peers}
    entry = measure(dataclasses.replace(CASE, peers=peers), bench(2e-6, 6e-6, 1e-6))
    assert entry["peers"]["absent"] == {"missing": "not installed"}
    assert entry["peers"]["breaks"] == {"missing": "RuntimeError: no such device"}
    assert entry["peers"]["eager autograd"]["ratio"] == pytest.approx(3.0)


def test_a_compiled_peer_needs_time_left(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])
    clock = Clock(60.0)
    peers = {"torch.compile": CASE.peers["eager autograd"]}
    case = dataclasses.replace(CASE, peers=peers)
    assert "ratio" in measure(case, bench(2e-6, 6e-6, 1e-6, clock=clock))["peers"]["torch.compile"]
    assert clock.slowest_compile == 5.0
    now[0] = 56.0
    left_out = measure(case, bench(2e-6, 1e-6, clock=clock))["peers"]["torch.compile"]
    assert left_out == {"missing": "left out: the time budget was used up"}


def test_samples_are_interleaved_in_turning_order():
    order: list[str] = []

    def prepared(name: str) -> Prepared:
        def sample() -> float:
            order.append(name)
            return float(len(order))

        return Prepared(sample, "order")

    times = interleave({name: prepared(name) for name in "abc"}, 3)
    assert order == list("abcbcacab")
    assert times == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_ratio_is_of_rounds():
    # A disturbance that makes one round ten times slower changes no ratio.
    found = compare([1.0, 1.0, 10.0, 1.0, 1.0], [3.0, 2.0, 30.0, 4.0, 3.0])
    assert (found.ratio, found.low, found.high) == (3.0, 3.0, 3.0)
    found = compare([1.0] * 8, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    assert (found.ratio, found.low, found.high) == (4.5, 3.0, 6.0)


def test_the_cpu_timer_counts_the_process_and_not_the_clock(monkeypatch):
    spent = [0.0]
    from bll.bench import timers

    monkeypatch.setattr(timers.time, "process_time", lambda: spent[0])

    def call() -> None:
        spent[0] += 0.0011

    prepared = CpuTimer(minimum=0.0055).prepare([call, call])
    assert prepared.calls == 4  # two rounds of both calls are nearest to the least sample
    assert prepared.sample() == pytest.approx(0.0011)


def test_memory_is_poisoned_only_inside():
    with poisoned():
        assert torch.isnan(torch.empty(3)).all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_true_peers(family):
    for function in ("posterior_kl", "evidence_loss"):
        for message in ("dense", "table"):
            case = pair_case(
                function,
                family,
                (12, 7),
                torch.float64,
                "cpu",
                message=message,
                compile_peers=False,
            )
            inputs = case.make(torch.Generator().manual_seed(3))
            assert case.error(inputs, case.ours(inputs)) < 1e-12
            for name, form in case.peers.items():
                if name != "Liger-Kernel":
                    assert case.gradient_error(inputs, form(inputs)) < 1e-11, name


def test_rows_that_depend_on_each_other_are_all_checked():
    case = gram_case((40, 6), torch.float64, "cpu", compile_peers=False)
    inputs = case.make(torch.Generator().manual_seed(3))
    value, gradient = case.ours(inputs)
    assert case.error(inputs, (value, gradient)) < 1e-12
    gradient = gradient.clone()
    gradient[-1] = 0
    assert case.error(inputs, (value, gradient)) > 1e-2


def test_suites_name_every_entry_once():
    names = [case.name for case in kernel_cases("cpu")]
    assert len(names) == len(set(names)) > 70
    for suite in ("quick", "kernels", "steps", "memory", "schedules"):
        listed = [task.name for task in tasks_under(suite, "cpu")]
        assert listed and len(listed) == len(set(listed))
