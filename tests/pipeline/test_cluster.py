"""Pipelines over links against closed forms, and against the simulator of one machine."""

from __future__ import annotations

import math

import pytest

from bll_kernels.pipeline.cluster import (
    Conditions,
    StageTimes,
    run_cluster,
)
from bll_kernels.pipeline.failures import Failures, best_interval, useful_share
from bll_kernels.pipeline.links import ETHERNET, INFINIBAND, NVLINK, Link
from bll_kernels.pipeline.schedule import pipelined
from bll_kernels.pipeline.simulate import BlockTimes, simulate

#: F = B = W = 1 per layer, one layer per rank.
LAYER = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0, skipped=1.0)


@pytest.mark.parametrize("ranks", [1, 2, 4, 16])
@pytest.mark.parametrize("micro_batches", [4, 16])
def test_backprop_fills_and_drains(ranks: int, micro_batches: int) -> None:
    if micro_batches < ranks:
        pytest.skip("1F1B needs a micro-batch per rank")
    for schedule in ("gpipe", "1f1b"):
        got = run_cluster(schedule, [LAYER] * ranks, micro_batches=micro_batches, batches=2)
        assert got.step_seconds == pytest.approx((micro_batches + ranks - 1) * 3.0)
        share = micro_batches / (micro_batches + ranks - 1)
        assert got.utilisation == pytest.approx(share)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_zero_bubble_leaves_a_third_of_the_bubble(ranks: int) -> None:
    """ZB-H1: (p - 1)(F + B - W) instead of (p - 1)(F + B + W) (Qi et al., table 1)."""
    for micro_batches in (2 * ranks, 4 * ranks):
        got = run_cluster("zero-bubble", [LAYER] * ranks, micro_batches=micro_batches)
        assert got.step_seconds == pytest.approx(3.0 * micro_batches + (ranks - 1) * 1.0)


@pytest.mark.parametrize("ranks", [1, 2, 5])
def test_local_pays_its_filling_once(ranks: int) -> None:
    work = StageTimes(2.0, 0.5, 2.0, 2.0, update=1.0, skipped=0.5)
    got = run_cluster("local", [work] * ranks, micro_batches=4, batches=6)
    step = 4 * (2.0 + 0.5 + 1.0 + 2.0) + 1.0
    assert got.step_seconds == pytest.approx(step)
    assert got.seconds == pytest.approx((ranks - 1) * 2.0 + 6 * step)


def test_local_equals_the_simulator_of_one_machine() -> None:
    uneven = [StageTimes(f, 0.1, 0.0, b, 0.2) for f, b in ((1, 2), (3, 1), (0.5, 4), (1, 1))]
    blocks = [BlockTimes(w.forward, w.loss, w.backward, w.update) for w in uneven]
    ops = pipelined(4, depth=4, micro_batches=3, batches=5, slots=100)
    want = simulate(ops, blocks).makespan
    got = run_cluster("local", uneven, Conditions(slots=100), micro_batches=3, batches=5)
    assert got.seconds == pytest.approx(want)


def test_links() -> None:
    border = 1e6
    work = [StageTimes(1e-3, backward_input=1e-3, backward_weight=1e-3, skipped=1.0)] * 3
    ideal = run_cluster("local", work, micro_batches=8)
    for link in (NVLINK, INFINIBAND):
        got = run_cluster("local", work, Conditions(link, border), micro_batches=8)
        # Transfers hide behind the learning of the rank that sends.
        assert got.step_seconds == pytest.approx(ideal.step_seconds)
        assert ideal.seconds < got.seconds < 1.02 * ideal.seconds
    slow = run_cluster("local", work, Conditions(ETHERNET, border), micro_batches=8)
    # 8 ms a transfer against 2 ms of work: the link sets the pace.
    assert slow.step_seconds == pytest.approx(8 * border / ETHERNET.bandwidth, rel=0.02)
    back = run_cluster("1f1b", work, Conditions(ETHERNET, border), micro_batches=8)
    assert back.bytes_per_step == 2 * slow.bytes_per_step == 2 * 2 * 8 * border
    assert back.step_seconds > slow.step_seconds


def test_latency_delays_the_first_and_not_the_pace() -> None:
    link = Link("far", 0.25, math.inf)
    got = run_cluster("local", [LAYER] * 3, Conditions(link, 1.0), micro_batches=4, batches=8)
    assert got.step_seconds == pytest.approx(8.0)
    assert got.seconds == pytest.approx(2 * 1.25 + 8 * 8.0)
    back = run_cluster("1f1b", [LAYER] * 3, Conditions(link, 1.0), micro_batches=4)
    assert back.step_seconds > (4 + 2) * 3.0 + 4 * 0.25 - 1e-9


def test_handling_costs_the_ranks_themselves() -> None:
    """A rank in the middle handles two tensors per micro-batch and direction, an end one."""
    hands = Conditions(handling=0.25)
    for ranks, most in ((1, 0), (2, 1), (4, 2)):
        got = run_cluster("local", [LAYER] * ranks, hands, micro_batches=4, batches=8)
        assert got.step_seconds == pytest.approx(4 * (2.0 + most * 0.25))
    for schedule in ("gpipe", "1f1b"):
        got = run_cluster(schedule, [LAYER] * 2, hands, micro_batches=8)
        assert got.step_seconds == pytest.approx((8 + 2 - 1) * (3.0 + 2 * 0.25))
    bubble = run_cluster("zero-bubble", [LAYER] * 2, hands, micro_batches=8)
    # The last rank begins after one forward, and never waits again.
    assert bubble.step_seconds == pytest.approx(1.25 + 8 * 3.5)


def test_stragglers_set_the_pace() -> None:
    for schedule in ("local", "1f1b"):
        ideal = run_cluster(schedule, [LAYER] * 4, micro_batches=32)
        slow = Conditions(slow={2: 1.5})
        got = run_cluster(schedule, [LAYER] * 4, slow, micro_batches=32)
        # Filling and draining pass through the slow rank too.
        assert 1.3 * ideal.step_seconds < got.step_seconds < 1.7 * ideal.step_seconds
        assert got.utilisation < ideal.utilisation
    steady = run_cluster("local", [LAYER] * 8, micro_batches=8, batches=50)
    shares = []
    for slots in (1, 2, 4):
        unsteady = Conditions(jitter=0.2, slots=slots)
        got = run_cluster("local", [LAYER] * 8, unsteady, micro_batches=8, batches=50)
        shares.append(steady.step_seconds / got.step_seconds)
    assert shares == sorted(shares) and 0.8 < shares[1] < 1.0


def test_failures() -> None:
    daily = Failures(rank_mtbf=30 * 86400.0, restart=120.0, checkpoint=10.0, every=600)
    options = {"step_seconds": 1.0, "steps": 2_000_000}
    shares = [useful_share(daily, ranks=ranks, **options) for ranks in (2, 64, 1024)]
    assert shares == sorted(shares, reverse=True)
    # Checkpoints, half an interval lost and a restart per failure (Young).
    rate = 64 / daily.rank_mtbf
    expected = 1.0 / (1 + 10 / 600 + rate * (120 + 305))
    assert shares[1] == pytest.approx(expected, abs=0.01)
    assert best_interval(daily, ranks=64, step_seconds=1.0) == round((20 * 40500) ** 0.5)
    with pytest.raises(ValueError, match="failures: expected positive times"):
        Failures(0.0, 1.0, 1.0, 1)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="handling: expected at least 0 seconds, got -1"):
        Conditions(handling=-1.0)
    with pytest.raises(ValueError, match="schedule: expected one of local, gpipe"):
        run_cluster("2f2b", [LAYER], micro_batches=1)
    with pytest.raises(ValueError, match="batches: expected at least 1 of each, got 1, 0, 4"):
        run_cluster("local", [LAYER], micro_batches=0)
    with pytest.raises(ValueError, match="link: expected latency >= 0"):
        Link("none", -1.0, 1.0)
