"""Which rank does what, and the process groups they talk on, each with a time limit."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous

from bll.distributed.attempt import fresh_store

#: Seconds a rank waits for another one before it gives up.
DEFAULT_TIMEOUT = 120.0


@dataclass(frozen=True)
class Layout:
    """Ranks in rows and columns: a row is a pipeline, a column holds replicas of one stage.

    Attributes:
        rows: Global ranks, [replicas][stages].
        replica: Row of this rank.
        stage: Column of this rank.
    """

    rows: tuple[tuple[int, ...], ...]
    replica: int
    stage: int

    @property
    def stages(self) -> int:
        """Ranks of a pipeline."""
        return len(self.rows[0])

    @property
    def replicas(self) -> int:
        """Pipelines side by side."""
        return len(self.rows)

    @property
    def row(self) -> tuple[int, ...]:
        """Global ranks of this rank's pipeline."""
        return self.rows[self.replica]


@dataclass(frozen=True)
class Groups:
    """The process groups of one rank.

    Attributes:
        everyone: Every rank of the layout.
        pipeline: The ranks of this pipeline, first stage first: activations.
        feedback: The same ranks in the same order: messages on their way down.
        replicas: The replicas of this rank's stage, or None without data parallelism.
    """

    everyone: ProcessGroup
    pipeline: ProcessGroup
    feedback: ProcessGroup
    replicas: ProcessGroup | None


def start(device: str | torch.device = "cpu", *, timeout: float = DEFAULT_TIMEOUT) -> int:
    """Join the processes that torchrun started: NCCL for CUDA devices, Gloo otherwise.

    Unlike a bare `init_process_group` it is safe after torchrun has restarted the ranks.

    Args:
        device: Device of the blocks; on CUDA, the process takes the one of its local rank.
        timeout: Seconds before an unanswered call fails.

    Returns:
        The global rank.

    Raises:
        RuntimeError: The process was not started by torchrun, or a rank did not come.
    """
    missing = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR") if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"distributed: {', '.join(missing)} not set; start the ranks with "
            "torchrun --nproc-per-node N ..."
        )
    if not dist.is_initialized():
        cuda = torch.device(device).type == "cuda"
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        limit = timedelta(seconds=timeout)
        store, rank, world = next(iter(rendezvous("env://", timeout=limit)))
        store = fresh_store(store, rank, world, timeout)
        backend = "nccl" if cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=limit)
    return dist.get_rank()


def find_layout(mesh: DeviceMesh | None) -> Layout:
    """Return this rank's place: one pipeline over all ranks, or that of a 2-D device mesh.

    Args:
        mesh: Dimensions (replicas, stages) over every rank, or None.

    Raises:
        RuntimeError: There is no process group.
        ValueError: The mesh is not two-dimensional, leaves ranks out, or has them in an order that
            this torch cannot give a group.
    """
    if not dist.is_initialized():
        raise RuntimeError(
            "distributed: no process group; call bll.distributed.start() or "
            "torch.distributed.init_process_group first"
        )
    world, rank = dist.get_world_size(), dist.get_rank()
    if mesh is None:
        rows: tuple[tuple[int, ...], ...] = (tuple(range(world)),)
    else:
        if mesh.ndim != 2 or mesh.mesh.numel() != world:
            raise ValueError(
                f"mesh: expected two dimensions (replicas, stages) over {world} ranks, "
                f"got shape {list(mesh.mesh.shape)}"
            )
        rows = tuple(tuple(row) for row in mesh.mesh.tolist())
        lines = (*rows, *zip(*rows, strict=True))
        if not _keeps_order() and any(list(line) != sorted(line) for line in lines):
            raise ValueError(
                "mesh: expected ranks that ascend along both dimensions (torch "
                f"{torch.__version__} sorts the ranks of a group), got {mesh.mesh.tolist()}"
            )
    found = [(i, row.index(rank)) for i, row in enumerate(rows) if rank in row]
    return Layout(rows, *found[0])


def _keeps_order() -> bool:
    """Whether a group can have its ranks in any order; torch 2.11 sorts them."""
    return "sort_ranks" in inspect.signature(dist.new_group).parameters


def _new_group(ranks: Sequence[int], limit: timedelta) -> ProcessGroup:
    """A group with the ranks in this order."""
    options: dict[str, Any] = {} if list(ranks) == sorted(ranks) else {"sort_ranks": False}
    group: ProcessGroup = dist.new_group(list(ranks), timeout=limit, **options)
    return group


def make_groups(layout: Layout, timeout: float) -> Groups:
    """Make the groups; every rank must call it. None waits longer than `timeout` seconds."""
    limit = timedelta(seconds=timeout)
    ranks = [rank for row in layout.rows for rank in row]
    everyone = dist.new_group(ranks, timeout=limit)
    pipelines, feedbacks, columns = [], [], []
    for row in layout.rows:
        pipelines.append(_new_group(row, limit))
        feedbacks.append(_new_group(row, limit))
    for column in zip(*layout.rows, strict=True):
        columns.append(_new_group(column, limit))
    return Groups(
        everyone,
        pipelines[layout.replica],
        feedbacks[layout.replica],
        columns[layout.stage] if layout.replicas > 1 else None,
    )
