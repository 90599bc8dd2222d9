"""Ranks that meet bad input, and ranks that fail."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import torch

import bll.distributed


def _error(call: Any, *arguments: Any, **options: Any) -> tuple[str, str]:
    try:
        call(*arguments, **options)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def odd_batches(rank: int, world: int) -> dict[str, Any]:
    """Batches that do not divide, are empty, or have another shape than the example."""
    model = jobs.network(norm=True)
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=8,
        seed=5,
        timeout=60.0,
    )
    (x, labels), *_ = jobs.batches(1, 32)
    found = {
        "short": _error(stage.step, x[:28], labels[:28]),
        "empty": _error(stage.step, x[:0], labels[:0]),
    }
    if rank == 0:
        found["no input"] = _error(stage.step, None, labels)
        found["width"] = _error(stage.step, x[:, :3], labels)
        found["dtype"] = _error(stage.step, x.double(), labels)
    # A smaller batch that divides is run at its own size, and the full size again after it.
    for size in (32, 16, 32):
        stage.step(x[:size], labels[:size])
    stage.gather()
    return {**found, **jobs.outcome(model, [])}


def first_step(rank: int, world: int) -> dict[str, Any]:
    """What the shapes of the borders cost: nothing may run before the first micro-batch."""
    model = jobs.network()
    calls = [0]
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    state = torch.get_rng_state()
    stage = bll.distributed.stage(
        model, jobs.adam, example=torch.zeros(1, jobs.FEATURES), micro_batches=4, timeout=60.0
    )
    stage._schedule(8)
    before = [norm.num_batches_tracked.item() for norm in _norms(model)]
    real = calls[0]
    x, labels = jobs.batches(1, 32)[0]
    stage.step(x, labels)
    stage.close()
    own = [
        norm.num_batches_tracked.item()
        for block in stage.own
        for child in block.children
        for norm in _norms(child)
    ]
    finite = all(torch.isfinite(t).all() for t in model.state_dict().values())
    return {
        "before": before,
        "own": own,
        "finite": finite,
        "real": real,
        "random": torch.equal(state, torch.get_rng_state()),
    }


def _norms(module: torch.nn.Module) -> list[torch.nn.BatchNorm1d]:
    return [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm1d)]


def mismatch(rank: int, world: int, what: str) -> tuple[str, str]:
    """Rank 1 differs from rank 0 in one respect."""
    options: dict[str, Any] = {"micro_batches": 2, "timeout": 60.0}
    odd = rank == 1
    width = 16
    if what == "micro_batches" and odd:
        options["micro_batches"] = 4
    if what == "width" and odd:
        width = 8
    if what == "recipe":
        options["recipe"] = {"lr": 1e-3 if odd else 2e-3}
    if what == "version" and odd:
        import bll_kernels.diagnostics as diagnostics

        diagnostics.__version__ = "0.0.0"
    if what == "table" and odd:
        import bll.distributed.recipe as recipe

        recipe.code_digest = lambda: "0" * 64
    model = jobs.network(width=width)
    example = torch.zeros(1, jobs.FEATURES)
    return _error(bll.distributed.stage, model, jobs.adam, example=example, **options)


def plant(stage: bll.distributed.Stage, how: str, at: int, mark: str) -> None:
    """Make this rank's first block end in its forward number `at`, and write down when."""
    done = [0]
    step = stage.steps[0]
    inner = step.forward

    def trouble(x: torch.Tensor, labels: torch.Tensor) -> Any:
        found = inner(x, labels)
        done[0] += 1
        if done[0] != 1 + at:
            return found
        Path(mark).write_text(repr(time.monotonic()))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "hang":
            time.sleep(600)
        raise ArithmeticError("planted")

    step.forward = trouble


def resumable(
    rank: int,
    world: int,
    *,
    directory: str,
    steps: int = 12,
    who: int = -1,
    how: str = "",
    at: int = 0,
    patience: float = 60.0,
    mark: str = "",
) -> dict[str, Any]:
    """Train with a checkpoint after every third batch, from the newest one there is.

    Rank `who` is killed, hangs or raises in its forward number `at`, counted from 0.
    """
    model = jobs.network()
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=4,
        seed=5,
        timeout=patience,
    )
    extra = stage.load(directory)
    first = 0 if extra is None else extra["next"]
    if rank == who:
        plant(stage, how, at, mark)
    for number, (x, labels) in enumerate(jobs.batches(steps, 16)):
        if number < first:
            continue
        stage.step(x, labels)
        if number % 3 == 2:
            stage.save(directory, {"next": number + 1})
    stage.gather()
    return {"first": first, **jobs.outcome(model, stage.optimizers)}


def _loaded(directory: str) -> tuple[torch.nn.Module, bll.distributed.Stage]:
    model = jobs.network()
    stage = bll.distributed.stage(
        model,
        jobs.adam,
        example=torch.zeros(1, jobs.FEATURES),
        micro_batches=4,
        seed=5,
        timeout=60.0,
    )
    return model, stage


def refused(rank: int, world: int, *, directory: str) -> dict[str, Any]:
    """Load what must not be loaded."""
    model, stage = _loaded(directory)
    before = jobs.plain(model.state_dict())
    error = _error(stage.load, directory)
    return {"error": error, "before": before, "after": jobs.plain(model.state_dict())}


def full_disk(rank: int, world: int, *, directory: str) -> dict[str, Any]:
    """Save while rank 1 cannot write."""
    import resource

    _, stage = _loaded(directory)
    extra = stage.load(directory)
    x, labels = jobs.batches(1, 16)[0]
    stage.step(x, labels)

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, limits[1]))
    error = _error(stage.save, directory, {"next": 99})
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert extra is not None
    stage.step(x, labels)
    stage.close()
    return {"error": error, "next": extra["next"], "usable": stage.batches_done == 8}
