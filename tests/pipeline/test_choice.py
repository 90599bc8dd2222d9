"""Mode auto: it trains while it measures, and keeps the fastest."""

from __future__ import annotations

import time

import pytest
from local_blocks import adam, data, everything, network
from tolerance import assert_same_bits
from torch import Tensor

from bll_kernels.pipeline.choice import TRIALS, WARM_UP, Choice
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.simulated_device import SimulatedDevice


def test_the_fastest_is_kept() -> None:
    choice = Choice(["sequential", "pipelined", "graphed"])
    seconds = {"sequential": 3.0, "pipelined": 2.0, "graphed": 2.5}
    seen = []
    while choice.chosen is None:
        mode = choice.mode
        seen.append(mode)
        warm = seen.count(mode) > WARM_UP
        choice.measured(mode, seconds[mode] if warm else 0.01, 2)
    assert seen[:4] == ["sequential", "pipelined", "graphed", "sequential"]
    assert len(seen) == 3 * (WARM_UP + TRIALS)
    assert choice.mode == choice.chosen == "pipelined"
    assert str(choice) == (
        "pipelined (us per sample: sequential 1500000.00, pipelined 1000000.00, "
        f"graphed 1250000.00; {TRIALS} runs each)"
    )


def test_equal_times_keep_the_simplest() -> None:
    choice = Choice(["sequential", "pipelined"])
    while choice.chosen is None:
        choice.measured(choice.mode, 1.0, 1)
    assert choice.chosen == "sequential"


def test_modes_that_cannot_run() -> None:
    choice = Choice(["sequential", "graphed"])
    choice.drop("graphed", "no GPU")
    assert choice.mode == choice.chosen == "sequential"
    assert str(choice) == "sequential; not graphed: no GPU"
    with pytest.raises(ValueError, match="sequential cannot run: no"):
        choice.drop("sequential", "no")
    with pytest.raises(ValueError, match="modes: expected one or more"):
        Choice([])


def test_a_choice_is_made_anew_without_what_was_chosen() -> None:
    choice = Choice(["sequential", "pipelined"])
    while choice.chosen is None:
        choice.measured(choice.mode, 1.0 if choice.mode == "pipelined" else 2.0, 1)
    assert choice.chosen == "pipelined"
    choice.drop("pipelined", "no threads")
    assert choice.mode == choice.chosen == "sequential"


@pytest.mark.parametrize("on_device", [False, True])
def test_choosing_does_not_change_the_training(
    on_device: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: object) -> None:
        raise RuntimeError("not permitted when stream is capturing")

    device = None
    if on_device:
        device = SimulatedDevice(1)
        # The graph is dropped on the way, at its first capture.
        monkeypatch.setattr(device, "capture", refuses)
    executor = Executor(network(0, 3, 6), adam, mode="auto", device=device)
    twin = Executor(network(0, 3, 6), adam)
    assert executor.choice is not None
    for x, y in data(0, 6, 6, 3 * (WARM_UP + TRIALS) + 5):
        left, right = executor.step(x, y), twin.step(x, y)
        assert_same_bits(left.output, right.output)
    for a, b in zip(everything(executor), everything(twin), strict=True):
        assert_same_bits(a, b)
    assert executor.choice.chosen in ("sequential", "pipelined")
    assert executor.batches_done == twin.batches_done
    reason = "cannot be captured: not permitted" if on_device else "blocks on the CPU"
    assert reason in executor.choice.dropped["graphed"]


def test_blocks_that_wait_are_better_pipelined() -> None:
    blocks = network(0, 3, 6)
    for block in blocks:
        forward = block.forward

        def slow(x: Tensor, forward=forward) -> Tensor:
            time.sleep(0.004)
            return forward(x)

        block.forward = slow  # type: ignore[method-assign]
    executor = Executor(blocks, adam, mode="auto")
    assert executor.choice is not None
    while executor.choice.chosen is None:
        executor.run(data(0, 6, 6, 4))
    assert executor.choice.chosen == "pipelined"


def test_one_block_has_no_choice() -> None:
    executor = Executor(network(0, 1, 6), adam, mode="auto")
    assert str(executor.choice).startswith("sequential; not pipelined: one block in flight")
