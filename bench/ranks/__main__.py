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
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import timedelta
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.ranks.calibrate import stage_times, transfer_seconds
from bench.ranks.methods import LIMIT, METHODS, Setting, make
from bll.bench.conditions import conditions
from bll_kernels.pipeline.cluster import Conditions, StageTimes, run_cluster
from bll_kernels.pipeline.links import Link


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
    transfer, handling = transfer_seconds(setting, rank)
    own = {
        "stage": asdict(stage_times(setting, rank)), "transfer": transfer, "handling": handling
    }  # fmt: skip
    results.put((rank, {"rounds": found, **own}))
    dist.barrier()
    dist.destroy_process_group()


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
    # Sending and receiving cost both processors, beside the time that a transfer keeps its link.
    link = Link("loopback", 0.0, border / timing[0]["transfer"])
    assumed = Conditions(link, border, handling=timing[0]["handling"])
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
                method, stages, assumed, micro_batches=setting.micro_batches, batches=8
            )
            row["simulated_samples_per_s"] = setting.batch / estimate.step_seconds
            row["of_simulated"] = row["samples_per_s"] / row["simulated_samples_per_s"]
        rows.append(row)
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    for name, value in asdict(Setting()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=value)
    options = vars(parser.parse_args(words))
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
        "transfer_seconds": timing[0]["transfer"],
        "handling_seconds": timing[0]["handling"],
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
