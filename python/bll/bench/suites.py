"""The suites by name, as lists of entries still to be measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from bll.bench.cases import Case
from bll.bench.class_cases import class_case, gram_case, pooled_case
from bll.bench.measure import Bench, measure
from bll.bench.memory_suite import memory_entry
from bll.bench.pair_cases import FAMILIES, pair_case
from bll.bench.schedule_suite import ScheduleCase, schedule_entry
from bll.bench.step_suite import step_entry
from bll.bench.steps import StepCase

FLOAT32, BFLOAT16, FLOAT16 = torch.float32, torch.bfloat16, torch.float16
#: Launch-bound, cache-sized, and several times the last cache, by kind of device.
PAIR_SHAPES: Final = {
    "cpu": ((8, 128), (256, 4096), (4096, 4096)),
    "cuda": ((8, 128), (1024, 4096), (16384, 4096)),
}


@dataclass(frozen=True)
class Task:
    """An entry still to be measured."""

    name: str
    run: Callable[[Bench], dict[str, Any]]


def _task(case: Case) -> Task:
    return Task(case.name, partial(measure, case))


def quick(device: str) -> Iterator[Task]:
    """What a newcomer asks for: a few losses and one training step."""
    yield _task(pair_case("posterior_kl", "bernoulli", (256, 4096), FLOAT32, device))
    plain = partial(class_case, device=device, dtype=FLOAT32, classes=10)
    yield _task(plain("class_evidence_loss", "gaussian", (128, 4096)))
    yield _task(plain("class_evidence_loss", "bernoulli", (128, 4096)))
    yield _task(plain("linear_cross_entropy", "gaussian", (128, 4096), compile_peers=False))
    yield _task(
        pooled_case(
            (64, 128, 16, 16), 10, FLOAT32, device, channels_last=False, compile_peers=False
        )
    )
    yield _task(
        pair_case("posterior_kl", "categorical", (256, 4096), FLOAT32, device, compile_peers=False)
    )
    case = StepCase("mlp", (1, 28, 28), 128, 4, 512, device)
    yield Task(case.name, partial(step_entry, case, compile_peers=False, quick=True))


#: Sizes that show that everything works, and nothing else.
TINY_SHAPES: Final = ((2, 16), (4, 48), (8, 64))


def kernel_cases(device: str, *, tiny: bool = False) -> Iterator[Case]:
    """Every function, family and dtype; dense, by label and pooled; three sizes.

    Args:
        device: Where the inputs are drawn.
        tiny: Tiny shapes without compiled peers, to see that everything works.
    """
    shapes = PAIR_SHAPES["cuda" if device.startswith("cuda") else "cpu"]
    small, middle, large = TINY_SHAPES if tiny else shapes
    for family in FAMILIES:
        for function in ("posterior_kl", "evidence_loss"):
            make = partial(pair_case, function, family, device=device)
            for dtype in (FLOAT32, BFLOAT16):
                for shape in (small, middle, large):
                    compiles = shape == middle and not tiny
                    yield make(shape, dtype, compile_peers=compiles)
                yield make(
                    middle, dtype, message="table", compile_peers=dtype == FLOAT32 and not tiny
                )
            yield make(middle, FLOAT16, compile_peers=False)
    for dtype in (FLOAT32, BFLOAT16):
        yield pair_case(
            "posterior_kl", "bernoulli", middle, dtype, device, full=True, compile_peers=not tiny
        )
    yield from _class_cases(device, tiny)


def _class_cases(device: str, tiny: bool) -> Iterator[Case]:
    whole = (8, 96) if tiny else (128, 4096)
    maps = (4, 8, 8, 4) if tiny else (128, 256, 16, 16)
    for dtype in (FLOAT32, BFLOAT16):
        for function, family in (
            ("class_evidence_loss", "gaussian"),
            ("class_evidence_loss", "bernoulli"),
            ("linear_cross_entropy", "gaussian"),
        ):
            for shape, large in (((8, 128), False), (whole, not tiny)):
                for classes in (10, 100):
                    compiles = dtype == FLOAT32 and large and classes == 10
                    yield class_case(
                        function, family, shape, classes, dtype, device, compile_peers=compiles
                    )
        for channels_last in (False, True):
            for shape4, large in (((8, 16, 8, 8), False), (maps, not tiny)):
                yield pooled_case(
                    shape4,
                    10,
                    dtype,
                    device,
                    channels_last=channels_last,
                    compile_peers=dtype == FLOAT32 and large,
                )
        yield gram_case((16, 64), dtype, device, compile_peers=False)
        large_gram = (24, 80) if tiny else (256, 1024)
        yield gram_case(large_gram, dtype, device, compile_peers=not tiny)


def kernels(device: str) -> Iterator[Task]:
    """See `kernel_cases`."""
    yield from map(_task, kernel_cases(device))


def step_cases(device: str, *, tiny: bool = False) -> list[StepCase]:
    """Networks from launch-bound to bound by arithmetic; ``tiny``: the smallest only."""
    if tiny:
        return [StepCase("mlp", (1, 8, 8), 8, 3, 16, device)]
    return [
        StepCase("mlp", (1, 8, 8), 64, 4, 32, device),
        StepCase("mlp", (1, 28, 28), 256, 4, 1024, device),
        StepCase("resnet10", (1, 28, 28), 64, 4, None, device),
        StepCase("resnet18", (3, 32, 32), 32, 4, 32, device),
    ]


def steps(device: str) -> Iterator[Task]:
    """See `step_cases`."""
    for case in step_cases(device):
        yield Task(case.name, partial(step_entry, case, compile_peers=True, quick=False))


def memory_cases(device: str, *, tiny: bool = False) -> list[StepCase]:
    """Two networks, cut into few and into many blocks; ``tiny``: the smallest only."""
    if tiny:
        return step_cases(device, tiny=True)
    return [
        StepCase("mlp", (1, 28, 28), 1024, 4, 1024, device),
        StepCase("mlp", (1, 28, 28), 1024, 8, 1024, device),
        StepCase("resnet10", (1, 28, 28), 128, 4, None, device),
    ]


def memory(device: str) -> Iterator[Task]:
    """See `memory_cases`."""
    for case in memory_cases(device):
        yield Task(case.name.replace("step ", "memory ", 1), partial(memory_entry, case))


def schedule_cases(device: str, *, tiny: bool = False) -> list[ScheduleCase]:
    """Depths and micro-batches of two networks; the executor runs on the CPU only."""
    if tiny:
        return [ScheduleCase(step, 2, 2) for step in step_cases(device, tiny=True)]
    wide = StepCase("mlp", (1, 28, 28), 256, 4, 1024, device)
    maps = StepCase("resnet10", (1, 28, 28), 64, 4, None, device)
    return [
        ScheduleCase(step, depth, parts)
        for step in (wide, maps)
        for depth, parts in ((1, 1), (2, 1), (2, 4), (4, 4))
    ]


def schedules(device: str) -> Iterator[Task]:
    """See `schedule_cases`."""
    for case in schedule_cases(device):
        yield Task(case.name, partial(schedule_entry, case))


SUITES: Final[dict[str, Callable[[str], Iterator[Task]]]] = {
    "kernels": kernels,
    "steps": steps,
    "memory": memory,
    "schedules": schedules,
}


def tasks_under(suite: str, device: str) -> list[Task]:
    """The entries of a suite, "quick" or one of `SUITES`.

    Raises:
        ValueError: The suite is not known.
    """
    makers = {"quick": quick, **SUITES}
    if suite not in makers:
        raise ValueError(f"suite: expected one of {', '.join(makers)}, got {suite!r}")
    return list(makers[suite](device))
