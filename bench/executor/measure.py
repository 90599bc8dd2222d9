"""Time, memory and limit of every depth, measured in turn in one process."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bll.commands.trace import TraceOptions, make_executor, random_batches
from bll_kernels.pipeline.events import Event, Recorder
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.memory import ActivationMeter, activation_bytes
from bll_kernels.pipeline.schedule import Kind, Op, pipelined
from bll_kernels.pipeline.simulate import BlockTimes, simulate_workers


@dataclass(frozen=True)
class Depth:
    """What one depth gave; times per batch.

    Attributes:
        depth: Blocks in flight.
        milliseconds: Median time of a batch.
        quartiles: Of the same.
        limit_milliseconds: Time the simulator gives for the measured times of single operations,
            with a processor for every worker.
        limit_here_milliseconds: The same, but no less than the work over the processors there are.
        peak_bytes: Most bytes of activations at once.
        law_bytes: What the law allows.
    """

    depth: int
    milliseconds: float
    quartiles: tuple[float, float]
    limit_milliseconds: float
    limit_here_milliseconds: float
    peak_bytes: int
    law_bytes: int


def measure(options: TraceOptions, *, processors: int, rounds: int) -> list[Depth]:
    """Every depth, from 1 to the number of blocks; depth 1 is mode "sequential".

    Args:
        options: The network and its batches; `depth` is not read.
        processors: Processors of this machine that may work at once.
        rounds: Runs of every depth, in turn.
    """
    executors = [_executor(options, depth) for depth in range(1, options.blocks + 1)]
    data = random_batches(options)
    for executor in executors:
        executor.run(data)
        executor.run(data)
    seconds: list[list[float]] = [[] for _ in executors]
    for _ in range(rounds):
        for executor, found in zip(executors, seconds, strict=True):
            start = time.perf_counter()
            executor.run(data)
            found.append(time.perf_counter() - start)
    times = _block_times(executors[0], data, options.blocks)
    work = 1e3 * sum(_work(block, options.micro_batches) for block in times)
    return [
        _depth(options, executor, data, times, found, work / processors)
        for executor, found in zip(executors, seconds, strict=True)
    ]


def _executor(options: TraceOptions, depth: int) -> Executor:
    mode = "sequential" if depth == 1 else "pipelined"
    return make_executor(dataclasses.replace(options, depth=depth), mode)


def _work(block: BlockTimes, micro_batches: int) -> float:
    return micro_batches * (block.forward + block.loss + block.backward) + block.update


def _block_times(sequential: Executor, data: Sequence, blocks: int) -> list[BlockTimes]:
    """Medians of single operations, in seconds, one block at a time."""
    with sequential.watched(Recorder()) as recorder:
        for _ in range(3):
            sequential.run(data)
    events = recorder.events()

    def median(block: int, kind: Kind) -> float:
        return statistics.median(_seconds(e) for e in events if (e.block, e.kind) == (block, kind))

    return [BlockTimes(*(median(block, kind) for kind in Kind)) for block in range(blocks)]


def _seconds(event: Event) -> float:
    return (event.end - event.start) / 1e9


def _schedule(options: TraceOptions, executor: Executor) -> list[Op]:
    return pipelined(
        options.blocks,
        depth=executor.depth,
        micro_batches=options.micro_batches,
        batches=options.batches,
        slots=executor.slots,
    )


def _depth(
    options: TraceOptions,
    executor: Executor,
    data: Sequence,
    times: list[BlockTimes],
    seconds: list[float],
    least: float,
) -> Depth:
    ops = _schedule(options, executor)
    simulated = simulate_workers(ops, times, workers=executor.depth, slots=executor.slots)
    with executor.watched(ActivationMeter()) as meter:
        executor.run(data)
    law = activation_bytes(
        ops,
        [meter.private[block] for block in range(options.blocks)],
        [meter.outputs[block] for block in range(options.blocks)],
        depth=executor.depth,
        slots=executor.slots,
    )
    milliseconds = [1e3 * second / options.batches for second in seconds]
    low, middle, high = statistics.quantiles(milliseconds, n=4)
    limit = 1e3 * simulated.makespan / options.batches
    return Depth(executor.depth, middle, (low, high), limit, max(limit, least), meter.peak, law)
