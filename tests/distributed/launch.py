"""Starts ranks as processes of their own, with a hard time limit, and collects what they return.

The processes are forked from a server that has imported torch, so that a job costs a second. The
store is held by the caller, as torchrun's agent does, so that any rank may die.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

HERE = Path(__file__).resolve().parent
#: Seconds after which a job is killed, however loaded the machine is.
LIMIT = 120.0


@dataclass
class Ended:
    """How a rank ended.

    Attributes:
        code: Exit code; minus the signal if one killed it, None if the time limit did.
        value: What the job returned, or None.
        error: The error as (type name, message, notes), or None.
        seconds: From the start of the job to the rank's end.
        at: When it ended, by the monotonic clock.
    """

    code: int | None = None
    value: Any = None
    error: tuple[str, str, list[str]] | None = None
    seconds: float = 0.0
    at: float = 0.0


def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["jobs"])
    # The server looks for modules where PYTHONPATH says, not where this process does.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE), *(path for path in sys.path if path)])
    try:
        forkserver.ensure_running()
    finally:
        del os.environ["PYTHONPATH"]
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return context


def _rank_main(
    job: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    timeout: float,
    pipe: Connection,
    arguments: dict[str, Any],
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    try:
        store = dist.TCPStore("127.0.0.1", port, world, False)
        dist.init_process_group(
            "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=timeout)
        )
        value = job(rank, world, **arguments)
        pipe.send(("value", value))
        code = 0
    except BaseException as error:
        notes = list(getattr(error, "__notes__", []))
        pipe.send(("error", (type(error).__name__, str(error), notes)))
        if "-v" in sys.argv:
            traceback.print_exc()
        code = 1
    # Without interpreter shutdown: a broken group must not keep a rank from leaving.
    pipe.close()
    os._exit(code)


def run_ranks(
    job: Callable[..., Any],
    world: int,
    *,
    timeout: float = 60.0,
    limit: float = LIMIT,
    stop_early: tuple[int, ...] = (),
    **arguments: Any,
) -> list[Ended]:
    """Run `job(rank, world, **arguments)` on every rank of a fresh Gloo group.

    Args:
        job: A function of a module in this directory.
        world: Number of ranks.
        timeout: Of the default process group, in seconds.
        limit: Seconds after which whatever still runs is killed.
        stop_early: Ranks that will not end by themselves; killed when the others have ended.
        **arguments: For the job.
    """
    context = _context()
    server = dist.TCPStore("127.0.0.1", 0, world, True, wait_for_workers=False)
    pipes, processes = [], []
    started = time.monotonic()
    for rank in range(world):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(
            target=_rank_main,
            daemon=True,
            args=(job, rank, world, server.port, timeout, theirs, arguments),
        )
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    found = [Ended() for _ in range(world)]
    left = set(range(world))
    try:
        while left - set(stop_early) and time.monotonic() - started < limit:
            for rank in sorted(left):
                _read(pipes[rank], found[rank])
                if processes[rank].exitcode is not None:
                    _read(pipes[rank], found[rank])
                    found[rank].code = processes[rank].exitcode
                    found[rank].at = time.monotonic()
                    found[rank].seconds = found[rank].at - started
                    left.discard(rank)
            time.sleep(0.02)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
    return found


def _read(pipe: Connection, ended: Ended) -> None:
    try:
        while pipe.poll():
            kind, content = pipe.recv()
            setattr(ended, kind, content)
    except EOFError:
        return


def values(ended: list[Ended]) -> list[Any]:
    """What the ranks returned; fails with the first rank's error where one raised."""
    for rank, one in enumerate(ended):
        assert one.error is None, f"rank {rank}: {one.error}"
        assert one.code == 0, f"rank {rank} ended with {one.code} after {one.seconds:.1f} s"
    return [one.value for one in ended]
