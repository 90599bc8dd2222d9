"""The processes of a comparison, one per rank.

They lie in a module of their own, since a fresh process cannot find functions of a `__main__`.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import resource
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from multiprocessing.queues import Queue
from typing import Any

import torch
import torch.distributed as dist

from bench.ranks.calibrate import stage_times, transfer_seconds
from bench.ranks.methods import LIMIT, METHODS, Setting, make


def _join(rank: int, setting: Setting, port: int) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    # One batch is soon learnt by heart, and then its gradients are denormal, which takes a
    # processor five times as long and says nothing about a method.
    torch.set_flush_denormal(True)
    store = dist.TCPStore("127.0.0.1", port, setting.ranks, False)
    dist.init_process_group(
        "gloo",
        store=store,
        rank=rank,
        world_size=setting.ranks,
        timeout=timedelta(seconds=LIMIT),
    )


def timing_rank(rank: int, setting: Setting, port: int, results: Queue[Any]) -> None:
    """Time every method on this rank, in turns, and what the simulation is given."""
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


def memory_rank(rank: int, setting: Setting, port: int, results: Queue[Any], method: str) -> None:
    """Peak of one method's memory on this rank."""
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
