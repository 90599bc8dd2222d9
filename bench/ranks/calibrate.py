"""What the simulation is given: each rank's own times, and those of a transfer."""

from __future__ import annotations

import statistics
import time
from typing import Final

import torch
import torch.distributed as dist
from torch import nn

import bll
from bench.ranks.methods import CLASSES, Setting, parts
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.cluster import StageTimes

#: Seconds in which all ranks time their own work.
CALIBRATION: Final = 3.0


#: Tensors sent there and back to time a transfer.
TRANSFERS: Final = 200


def transfer_seconds(setting: Setting, rank: int) -> tuple[float, float]:
    """An output of a micro-batch from one rank to the next.

    Returns:
        Seconds of a transfer, half a median of the times there and back; and seconds of the
        process's processors, all its threads together, that sending or receiving one took.
    """
    output = torch.zeros(setting.batch // setting.micro_batches, setting.width)
    times = []
    spent = time.process_time()
    for _ in range(TRANSFERS):
        start = time.perf_counter()
        if rank == 0:
            dist.send(output, 1)
            dist.recv(output, 1)
        elif rank == 1:
            dist.recv(output, 0)
            dist.send(output, 0)
        times.append(time.perf_counter() - start)
    spent = time.process_time() - spent
    dist.barrier()
    return statistics.median(times) / 2, spent / (2 * TRANSFERS)


def stage_times(setting: Setting, rank: int) -> StageTimes:
    """One rank's work on a micro-batch, in seconds, while all ranks do theirs.

    At once, since ranks share caches and execution units, and where there are more ranks than
    processors, those too.
    """
    x = torch.randn(setting.batch, setting.width)
    inputs = x.split(setting.batch // setting.micro_batches)
    labels = torch.zeros(len(inputs[0]), dtype=torch.int64)
    model = bll.wrap(
        nn.Sequential(*parts(setting)),
        [str(r) for r in range(setting.ranks - 1)],
        num_classes=CLASSES,
        example=x[:2],
    )
    step = bll.executor(model, BlockAdam, micro_batches=setting.micro_batches).steps[rank]
    spent = dict.fromkeys(("forward", "loss", "backward", "update"), 0.0)

    def run_batch() -> None:
        for part in inputs:
            moments = [time.perf_counter()]
            _, saved = step.forward(part, labels)
            moments.append(time.perf_counter())
            _, saved = step.loss(saved)
            moments.append(time.perf_counter())
            step.backward(saved)
            moments.append(time.perf_counter())
            for name, start, end in zip(spent, moments, moments[1:], strict=False):
                spent[name] += end - start
        start = time.perf_counter()
        step.update()
        spent["update"] += time.perf_counter() - start

    for _ in range(3):
        run_batch()
    spent.update(dict.fromkeys(spent, 0.0))
    dist.barrier()
    count, until = 0, time.perf_counter() + CALIBRATION
    while time.perf_counter() < until:
        run_batch()
        count += 1
    parts_run = {**dict.fromkeys(spent, count * len(inputs)), "update": count}
    mean = {name: seconds / parts_run[name] for name, seconds in spent.items()}
    # A block's backward is all weights' gradients and all inputs' but those of its first layer.
    layers = setting.layers
    share = mean["backward"] / (2 * layers - 1)
    return StageTimes(
        mean["forward"],
        mean["loss"],
        layers * share,
        layers * share,
        mean["update"],
        skipped=1 / layers,
    )
