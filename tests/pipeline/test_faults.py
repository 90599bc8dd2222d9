"""Faults: surfaced once and named, nothing hangs, nothing leaks, the next step is right."""

from __future__ import annotations

import copy
import gc
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from faulty import Fault
from local_blocks import adam, data, everything, network
from tolerance import assert_same_bits
from torch import Tensor
from torch.nn import Parameter

from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.memory import ActivationMeter
from bll_kernels.pipeline.schedule import Kind
from bll_kernels.pipeline.worker import Worker

LIMIT = 10.0  # seconds until a step counts as hanging
BLOCKS, WIDTH, BATCHES = 4, 4, 2


class Planted(Exception):
    """A type of its own, so that no other error passes for it."""


def within_limit(executor: Executor, feed: list[tuple[Tensor, Tensor]]) -> BaseException | None:
    """What the run raised; fails where it is not over in time."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            executor.run(feed)
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LIMIT)
    assert not thread.is_alive(), "the run hangs"
    return raised[0] if raised else None


def is_right(executor: Executor, batch: tuple[Tensor, Tensor]) -> None:
    """The next step is that of a fresh executor with the same state."""
    twin = Executor(copy.deepcopy(executor.blocks), adam, micro_batches=executor.micro_batches)
    for mine, theirs in zip(executor.optimizers, twin.optimizers, strict=True):
        theirs.load_state_dict(copy.deepcopy(mine.state_dict()))
    twin.batches_done = executor.batches_done
    executor.step(*batch)
    twin.step(*batch)
    for left, right in zip(everything(executor), everything(twin), strict=True):
        assert_same_bits(left, right)


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """Hides what lived before from the collector: tensors of other tests are not asked."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensor_bytes() -> int:
    """Bytes of the storages of all plain tensors that the collector knows."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (Tensor, Parameter):  # subclasses may have no memory of their own
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def inject(count: int, seed: int, error: type[BaseException]) -> None:
    """Random faults in long-lived executors of both modes, one after the other."""
    generator = random.Random(seed)
    executors = [
        Executor(network(seed, BLOCKS, WIDTH), adam, micro_batches=2),
        Executor(network(seed, BLOCKS, WIDTH), adam, mode="pipelined", micro_batches=2),
        Executor(network(seed, BLOCKS, WIDTH), adam, mode="pipelined", depth=2, slots=1),
    ]
    feeds = [data(seed + n, 6, WIDTH, BATCHES) for n in range(8)]
    for executor in executors:
        executor.run(feeds[0])
    before = tensor_bytes()
    for case in range(count):
        executor = generator.choice(executors)
        feed = generator.choice(feeds)
        parts = executor.micro_batches
        kind = generator.choice(list(Kind))
        micro_batch = generator.randrange(BATCHES * parts)
        if kind is Kind.UPDATE:
            micro_batch = micro_batch // parts * parts + parts - 1
        planted = error(f"case {case}")
        fault = Fault(
            executor,
            generator.randrange(BLOCKS),
            kind,
            micro_batch,
            planted,
            late=generator.random() < 0.5,
        )
        gc.disable()  # what only the collector would free counts as leaked
        try:
            with fault, executor.watched(ActivationMeter()) as meter:
                raised = within_limit(executor, feed)
            assert raised is planted, case
            assert fault.raised == 1, case
            assert raised.__notes__ == [fault.note], case
            raised.__traceback__ = None
            assert meter.live == 0, case
        finally:
            gc.enable()
        assert all(t.ended.is_set() for t in threading.enumerate() if isinstance(t, Worker))
        assert all(p.grad is None for block in executor.blocks for p in block.parameters())
        if case % 20 == 0:
            is_right(executor, feeds[case // 20 % 8][0])
        del raised, planted, fault, meter
    assert tensor_bytes() == before


@pytest.mark.usefixtures("only_new_objects")
def test_faults_are_named_and_leave_nothing() -> None:
    inject(100, 1, Planted)


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.slow
def test_a_thousand_faults_are_named_and_leave_nothing() -> None:
    inject(1000, 2, Planted)


@pytest.mark.usefixtures("only_new_objects")
def test_out_of_memory_is_a_fault_like_any_other() -> None:
    inject(100, 3, torch.OutOfMemoryError)


@pytest.mark.parametrize("mode", ["sequential", "pipelined"])
def test_a_kept_error_keeps_no_activations(mode: str) -> None:
    executor = Executor(network(0, 3, 4), adam, mode=mode)
    # An update is given nothing, so whatever is kept is kept by frames of the executor.
    fault = Fault(executor, 1, Kind.UPDATE, 1, Planted())
    with fault, executor.watched(ActivationMeter()) as meter:
        raised = within_limit(executor, data(0, 4, 4, 3))
    assert raised is fault.error
    assert raised.__traceback__ is not None
    assert meter.live == 0
    raised.__traceback__ = None


def test_an_error_in_every_block_surfaces_once() -> None:
    executor = Executor(network(0, 3, 4), adam, mode="pipelined")
    faults = [Fault(executor, block, Kind.LOSS, 0, Planted(str(block))) for block in range(3)]
    for fault in faults:
        fault.__enter__()
    raised = within_limit(executor, data(0, 4, 4, 3))
    assert isinstance(raised, Planted)
    assert len(raised.__notes__) == 1
    for fault in faults:
        fault.__exit__()


def test_short_and_changing_batches() -> None:
    sizes = [6, 4, 12, 6, 4, 8]
    feed = [data(size, size, WIDTH, 1)[0] for size in sizes]
    results = []
    for mode in ("sequential", "pipelined"):
        executor = Executor(network(5, 3, WIDTH), adam, mode=mode, micro_batches=2)
        outputs = [executor.step(*batch).output for batch in feed]
        outputs += [result.output for result in executor.run(feed)]
        assert [len(output) for output in outputs] == sizes * 2
        results.append([*everything(executor), *outputs])
    for left, right in zip(*results, strict=True):
        assert_same_bits(left, right)


def test_bad_batches_in_a_run_are_refused_before_any_block() -> None:
    executor = Executor(network(5, 3, WIDTH), adam, mode="pipelined", micro_batches=2)
    good = data(0, 6, WIDTH, 1)[0]
    before = [t.clone() for t in everything(executor)]
    for bad, error, message in (
        ((good[0][:3], good[1][:3]), ValueError, "divides into 2 parts, got 3"),
        ((good[0][:0], good[1][:0]), ValueError, "divides into 2 parts, got 0"),
        ((good[0], good[1][:4]), ValueError, "labels: expected 6, one per sample, got 4"),
        ((good[0][0, 0], good[1]), ValueError, "x: expected a batch of samples"),
        (("x", good[1]), TypeError, "x: expected a tensor, got str"),
        ((good[0], [1, 2]), TypeError, "labels: expected a tensor, got list"),
    ):
        with pytest.raises(error, match=message):
            executor.run([good, bad])
    for left, right in zip(everything(executor), before, strict=True):
        assert_same_bits(left, right)
    assert executor.batches_done == 0


def test_a_step_inside_a_step_is_refused() -> None:
    executor = Executor(network(5, 2, WIDTH), adam)
    batch = data(0, 4, WIDTH, 1)[0]
    forward = executor.blocks[1].forward

    def nested(x: Tensor) -> Tensor:
        executor.step(*batch)
        return forward(x)

    executor.blocks[1].forward = nested  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="a step is in progress"):
        executor.step(*batch)


def interrupt(moments: int, seed: int) -> None:
    """Ctrl-C at random moments of a training process: it ends in time, by KeyboardInterrupt."""
    generator = random.Random(seed)
    script = str(Path(__file__).with_name("interrupted.py"))
    process = subprocess.Popen(
        [sys.executable, script, str(moments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        for _ in range(moments):
            assert process.stdout.readline() == "running\n"
            time.sleep(generator.uniform(0.0, 0.03))
            sent = time.monotonic()
            process.send_signal(signal.SIGINT)
            line = process.stdout.readline()
            if line == "lost\n":  # one in some hundred: by Python, see there; pressed again
                process.send_signal(signal.SIGINT)
                line = process.stdout.readline()
            assert line == "interrupted, 0 workers, next step right\n", line
            assert time.monotonic() - sent < 2.0
            process.stdin.write("on\n")
            process.stdin.flush()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


def test_ctrl_c() -> None:
    interrupt(10, 1)


@pytest.mark.slow
def test_ctrl_c_at_fifty_moments() -> None:
    interrupt(50, 2)
