"""``bll trace``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from bll.atomic import write_atomically
from bll.commands.errors import CommandError
from bll.executor import executor
from bll.models import build_network
from bll.timeline import draw_timeline
from bll.training.machine import processor_name
from bll.wrap import wrap
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.backprop import Backprop
from bll_kernels.pipeline.events import Event, Recorder, chrome_trace
from bll_kernels.pipeline.executor import Executor

CLASSES = 10
#: Batches before those that are recorded: the first ones build states and compile.
WARM_UP = 4
JSON, PICTURE = "trace.json", "trace.png"
Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TraceOptions:
    """What is traced.

    Attributes:
        model: Name of a reference network.
        blocks: Number of blocks.
        width: See `build_network`.
        rule: Learning rule; one that cuts.
        depth: Blocks in flight of the pipelined run; None for all.
        micro_batches: Parts of a batch.
        batch_size: Random images of a batch: 1 x 28 x 28 for ``mlp``, else 3 x 32 x 32.
        batches: Batches recorded.
        threads: Intra-op threads of a block, in every run.
        seed: Of the weights and the images.
    """

    model: str = "mlp"
    blocks: int = 4
    width: int | None = None
    rule: str = "bll"
    depth: int | None = None
    micro_batches: int = 1
    batch_size: int = 256
    batches: int = 4
    threads: int = 1
    seed: int = 0


def trace(out: Path, options: TraceOptions) -> None:
    """Write a Perfetto trace and a picture of backpropagation and both orders of local steps.

    Raises:
        CommandError: An option is not usable, or a file cannot be written.
    """
    try:
        runs = record_runs(options)
        title = _title(options)
        picture = draw_timeline(runs, title)
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from error
    content = {**chrome_trace(runs), "otherData": {"conditions": title}}
    try:
        out.mkdir(parents=True, exist_ok=True)
        write_atomically(out / JSON, (json.dumps(content) + "\n").encode())
        write_atomically(out / PICTURE, picture)
    except OSError as error:
        raise CommandError(f"out: {out} could not be written: {error.strerror}") from error
    for run, events in runs.items():
        span = (max(e.end for e in events) - min(e.start for e in events)) / 1e6
        print(f"{run}: {span:.2f} ms for {options.batches} batches")
    print(f"{out / JSON} (open it in ui.perfetto.dev)\n{out / PICTURE}")


def record_runs(options: TraceOptions) -> dict[str, list[Event]]:
    """The events of a few batches under backpropagation, sequential and pipelined local learning.

    Raises:
        ValueError: An option is out of its range.
        TypeError: The model is no `nn.Sequential`.
    """
    for name in ("batches", "batch_size", "threads"):
        if getattr(options, name) < 1:
            option = name.replace("_", "-")
            raise ValueError(f"{option}: expected at least 1, got {getattr(options, name)}")
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        local = make_executor(options, "sequential")
        return {
            "backpropagation": _record_backprop(options, local),
            "local, sequential": _record(options, make_executor(options, "sequential")),
            f"local, pipelined, depth {options.depth or options.blocks}": _record(
                options, make_executor(options, "pipelined")
            ),
        }
    finally:
        torch.set_num_threads(before)


def _image_shape(options: TraceOptions) -> tuple[int, int, int]:
    return (1, 28, 28) if options.model == "mlp" else (3, 32, 32)


def random_batches(options: TraceOptions) -> Batches:
    """Random images and labels."""
    generator = torch.Generator().manual_seed(options.seed)
    size, shape = options.batch_size, _image_shape(options)
    return [
        (
            torch.randn(size, *shape, generator=generator),
            torch.randint(CLASSES, (size,), generator=generator),
        )
        for _ in range(options.batches)
    ]


def _model(options: TraceOptions) -> nn.Module:
    torch.manual_seed(options.seed)
    shape = _image_shape(options)
    network = build_network(
        options.model, shape, CLASSES, blocks=options.blocks, width=options.width
    )
    return wrap(
        network.model,
        blocks=list(network.cuts),
        rule=options.rule,
        num_classes=CLASSES,
        example=torch.zeros(2, *shape),
    )


def make_executor(options: TraceOptions, mode: str) -> Executor:
    """An executor of a freshly drawn network.

    Raises:
        ValueError: An option is out of its range.
        TypeError: The model is no `nn.Sequential`.
    """
    return executor(
        _model(options),
        BlockAdam,
        mode=mode,
        depth=options.depth if mode == "pipelined" else None,
        micro_batches=options.micro_batches,
        threads=options.threads,
        seed=options.seed,
    )


def _record(options: TraceOptions, local: Executor) -> list[Event]:
    data = random_batches(options)
    for batch in range(WARM_UP):
        local.step(*data[batch % len(data)])
    with local.watched(Recorder()) as recorder:
        local.run(data)
    return recorder.events()


def _record_backprop(options: TraceOptions, local: Executor) -> list[Event]:
    network = Backprop(local.blocks, BlockAdam)
    data = random_batches(options)
    for batch in range(WARM_UP):
        network.step(*data[batch % len(data)])
    network.recorder, network.steps_done = Recorder("bp"), 0
    for x, labels in data:
        network.step(x, labels)
    return network.recorder.events()


def _title(options: TraceOptions) -> str:
    return (
        f"{options.model}, {options.blocks} blocks, rule {options.rule}, batch "
        f"{options.batch_size} in {options.micro_batches} part"
        f"{'s' if options.micro_batches > 1 else ''}, {options.batches} batches, "
        f"{options.threads} intra-op thread{'s' if options.threads > 1 else ''}\n"
        f"{processor_name()}, torch {torch.__version__}"
    )
