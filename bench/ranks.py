"""Training over ranks side by side: blocks with local losses, pipelines of backpropagation, DDP.

    python -m bench.ranks --ranks 2 --out bench/results/ranks

Every method trains the same layers on the same batches, on the same ranks, in rounds that take
turns; a pass of its own per method reads peak memory. Writes `ranks-<n>.json` and `.csv`.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import os
import queue
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleavedZeroBubble,
)
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import bll
import bll.distributed
from bll.bench.conditions import conditions
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.cluster import Conditions, Link, StageTimes, run_cluster

CLASSES = 10
#: Seconds after which the ranks are killed.
LIMIT = 1500
METHODS = ("local", "gpipe", "1f1b", "zero-bubble", "ddp")


@dataclass(frozen=True)
class Setting:
    """What is trained: on each rank `layers` linear layers with ReLU."""

    ranks: int = 2
    layers: int = 2
    width: int = 512
    batch: int = 512
    micro_batches: int = 8
    steps: int = 10
    rounds: int = 5


class CountingStage(PipelineStage):
    """Counts the bytes it sends."""

    bytes_sent = 0

    def _counted(self, ops: list[dist.P2POp]) -> list[dist.P2POp]:
        self.bytes_sent += sum(op.tensor.numel() * op.tensor.element_size() for op in ops)
        return ops

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[dist.P2POp]:
        """Activations to the next rank."""
        return self._counted(super().get_fwd_send_ops(fwd_chunk_id))

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[dist.P2POp]:
        """Gradients to the rank before."""
        return self._counted(super().get_bwd_send_ops(bwd_chunk_id))


def parts(setting: Setting) -> list[nn.Sequential]:
    """The layers of every rank, from a fixed seed."""
    torch.manual_seed(0)
    found = []
    for rank in range(setting.ranks):
        layers: list[nn.Module] = []
        for _ in range(setting.layers):
            layers += [nn.Linear(setting.width, setting.width), nn.ReLU()]
        if rank == setting.ranks - 1:
            layers.append(nn.Linear(setting.width, CLASSES))
        found.append(nn.Sequential(*layers))
    return found


class Runner:
    """One method on this rank: `step` trains a batch and returns when this rank may go on."""

    def __init__(
        self, step: Callable[[], Any], sent: Callable[[], int], end: Callable[[], Any]
    ) -> None:
        self.step, self.sent, self.end = step, sent, end


def make(method: str, setting: Setting, rank: int) -> Runner:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(setting.batch, setting.width, generator=generator)
    labels = torch.randint(0, CLASSES, (setting.batch,), generator=generator)
    if method == "local":
        return _local(setting, x, labels)
    if method == "ddp":
        return _ddp(setting, rank, x, labels)
    return _pipeline(method, setting, rank, x, labels)


def _local(setting: Setting, x: Tensor, labels: Tensor) -> Runner:
    model = nn.Sequential(*parts(setting))
    names = [str(rank) for rank in range(setting.ranks - 1)]
    model = bll.wrap(model, names, num_classes=CLASSES, example=x[:2])
    stage = bll.distributed.stage(
        model, BlockAdam, example=x, micro_batches=setting.micro_batches, timeout=LIMIT
    )
    return Runner(lambda: stage.step(x, labels), lambda: stage.traffic.bytes_sent, stage.close)


def _pipeline(method: str, setting: Setting, rank: int, x: Tensor, labels: Tensor) -> Runner:
    part = parts(setting)[rank]
    optimizer = BlockAdam(part.parameters())
    size = setting.batch // setting.micro_batches
    # What crosses a border must say that it wants a gradient, or none is sent back.
    inside = torch.empty(size, setting.width, device="meta").requires_grad_(rank > 0)
    last = rank == setting.ranks - 1
    out = torch.empty(size, CLASSES if last else setting.width, device="meta").requires_grad_()
    stage = CountingStage(part, rank, setting.ranks, torch.device("cpu"), inside, out)
    count = setting.micro_batches
    if method == "gpipe":
        schedule: Any = ScheduleGPipe(stage, count, loss_fn=cross_entropy)
    elif method == "1f1b":
        schedule = Schedule1F1B(stage, count, loss_fn=cross_entropy)
    else:
        schedule = ScheduleInterleavedZeroBubble([stage], count, loss_fn=cross_entropy)

    def step() -> None:
        if rank == 0:
            schedule.step(x)
        elif last:
            schedule.step(target=labels, losses=[])
        else:
            schedule.step()
        optimizer.step()
        optimizer.zero_grad()

    return Runner(step, lambda: stage.bytes_sent, dist.barrier)


def _ddp(setting: Setting, rank: int, x: Tensor, labels: Tensor) -> Runner:
    model = DistributedDataParallel(nn.Sequential(*parts(setting)))
    optimizer = BlockAdam(model.parameters())
    own = slice(rank, None, setting.ranks)
    steps = [0]
    parameters = sum(p.numel() * p.element_size() for p in model.parameters())

    def step() -> None:
        cross_entropy(model(x[own]), labels[own]).backward()
        optimizer.step()
        optimizer.zero_grad()
        steps[0] += 1

    # A ring all-reduce sends every gradient 2 (n - 1) / n times.
    per_step = 2 * (setting.ranks - 1) * parameters // setting.ranks
    return Runner(step, lambda: per_step * steps[0], dist.barrier)


def _join(rank: int, setting: Setting, port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, setting.ranks, False)
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=setting.ranks,
        timeout=timedelta(seconds=LIMIT),
    )


def _timing(rank: int, setting: Setting, port: int, results: Queue[Any]) -> None:
    _join(rank, setting, port)
    runners = {method: make(method, setting, rank) for method in METHODS}
    found: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    for runner in runners.values():
        for _ in range(2):
            runner.step()
        runner.end()
    for _ in range(setting.rounds):
        for method, runner in runners.items():
            dist.barrier()
            sent, cpu, start = runner.sent(), time.process_time(), time.perf_counter()
            for _ in range(setting.steps):
                runner.step()
            runner.end()
            wall = time.perf_counter() - start
            cpu = time.process_time() - cpu
            per_step = (runner.sent() - sent) / setting.steps
            found[method].append({"wall": wall, "cpu": cpu, "bytes": per_step})
    results.put((rank, {"rounds": found, "stage": asdict(stage_times(setting, rank))}))
    dist.barrier()
    dist.destroy_process_group()


def stage_times(setting: Setting, rank: int) -> StageTimes:
    """One rank's work on a micro-batch, alone: medians of CPU seconds."""
    x = torch.randn(setting.batch // setting.micro_batches, setting.width)
    labels = torch.zeros(len(x), dtype=torch.int64)
    model = bll.wrap(
        nn.Sequential(*parts(setting)),
        [str(r) for r in range(setting.ranks - 1)],
        num_classes=CLASSES,
        example=x[:2],
    )
    step = bll.executor(model, BlockAdam).steps[rank]
    times: dict[str, list[float]] = {"forward": [], "loss": [], "backward": [], "update": []}
    for _ in range(30):
        moments = [time.process_time()]
        _, saved = step.forward(x, labels)
        moments.append(time.process_time())
        _, saved = step.loss(saved)
        moments.append(time.process_time())
        step.backward(saved)
        moments.append(time.process_time())
        step.update()
        moments.append(time.process_time())
        for name, start, end in zip(times, moments, moments[1:], strict=False):
            times[name].append(end - start)
    median = {name: statistics.median(values) for name, values in times.items()}
    # A block's backward is all weights' gradients and all inputs' but those of its first layer.
    layers = setting.layers
    share = median["backward"] / (2 * layers - 1)
    return StageTimes(
        median["forward"],
        median["loss"],
        layers * share,
        layers * share,
        median["update"],
        skipped=1 / layers,
    )


def _memory(rank: int, setting: Setting, port: int, results: Queue[Any], method: str) -> None:
    _join(rank, setting, port)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    runner = make(method, setting, rank)
    for _ in range(5):
        runner.step()
    runner.end()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    results.put((rank, {"peak_bytes": 1024 * peak}))
    dist.barrier()
    dist.destroy_process_group()


def launch(target: Callable[..., None], setting: Setting, *more: Any) -> list[Any]:
    """Run a function on fresh ranks and return what they put, in order; never leaves one behind."""
    context = multiprocessing.get_context("spawn")
    server = dist.TCPStore("127.0.0.1", 0, setting.ranks, True, wait_for_workers=False)
    results: Queue[Any] = context.Queue()
    ranks = [
        context.Process(target=target, args=(rank, setting, server.port, results, *more))
        for rank in range(setting.ranks)
    ]
    for process in ranks:
        process.start()
    try:
        found: dict[int, Any] = {}
        until = time.monotonic() + LIMIT
        while len(found) < len(ranks) and time.monotonic() < until:
            if any(process.exitcode for process in ranks):
                raise RuntimeError("a rank failed; its error stands above")
            try:
                rank, value = results.get(timeout=0.5)
            except queue.Empty:
                continue
            found[rank] = value
        for process in ranks:
            process.join(timeout=60)
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()
    return [found[rank] for rank in range(setting.ranks)]


def summarise(setting: Setting, timing: list[Any], memory: dict[str, list[Any]]) -> list[Any]:
    """One row per method: medians over the rounds, and what the simulation says."""
    samples = setting.steps * setting.batch
    stages = [StageTimes(**rank["stage"]) for rank in timing]
    border = 4.0 * setting.width * setting.batch / setting.micro_batches
    conditions = Conditions(Link("loopback", 0.0, 2e9), border)
    rows = []
    for method in METHODS:
        rounds = [rank["rounds"][method] for rank in timing]
        walls = [max(one["wall"] for one in each) for each in zip(*rounds, strict=True)]
        idle = [
            statistics.median(max(0.0, 1 - one["cpu"] / one["wall"]) for one in own)
            for own in rounds
        ]
        row = {
            "method": method,
            "samples_per_s": samples / statistics.median(walls),
            "slowest_round": samples / max(walls),
            "fastest_round": samples / min(walls),
            "bytes_per_step": sum(own[-1]["bytes"] for own in rounds),
            "idle_share": idle,
            "peak_bytes": [one["peak_bytes"] for one in memory[method]],
            "simulated_samples_per_s": None,
            "of_simulated": None,
        }
        if method != "ddp":
            estimate = run_cluster(
                method, stages, conditions, micro_batches=setting.micro_batches, batches=8
            )
            row["simulated_samples_per_s"] = setting.batch / estimate.step_seconds
            row["of_simulated"] = row["samples_per_s"] / row["simulated_samples_per_s"]
        rows.append(row)
    return rows


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args())
    out = options.pop("out")
    setting = Setting(**options)
    timing = launch(_timing, setting)
    memory = {method: launch(_memory, setting, method) for method in METHODS}
    rows = summarise(setting, timing, memory)
    report = {
        "setting": asdict(setting),
        "machine": conditions("cpu", "wall clock of rounds that take turns"),
        "load": os.getloadavg(),
        "rows": rows,
        "stages": [rank["stage"] for rank in timing],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / f"ranks-{setting.ranks}.json").write_text(json.dumps(report, indent=1) + "\n")
    with (out / f"ranks-{setting.ranks}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        print(
            f"{row['method']:12s} {row['samples_per_s']:9.0f} samples/s  "
            f"{row['bytes_per_step'] / 1e6:7.2f} MB/step  idle "
            + ", ".join(f"{share:.2f}" for share in row["idle_share"])
            + "  peak "
            + ", ".join(f"{peak / 2**20:.0f}" for peak in row["peak_bytes"])
            + " MiB"
            + (f"  {row['of_simulated']:.2f} of simulated" if row["of_simulated"] else "")
        )


if __name__ == "__main__":
    main()
