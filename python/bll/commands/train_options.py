"""The options of ``bll train``; what it needs is imported when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bll.commands.errors import CommandError


def train(
    out: Annotated[Path, typer.Option(help="Directory the run writes to.")],
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file of options; those on the command line come before it."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="digits, fashion-mnist or cifar-10; needed for a new run.")
    ] = None,
    data_dir: Annotated[
        list[str] | None,
        typer.Option(help="Directory of the data files; may be repeated, searched in order."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="mlp, resnet10, resnet18, resnet50 or vgg8b. Default: mlp.")
    ] = None,
    blocks: Annotated[
        str | None,
        typer.Option(
            metavar="N|NAME,...",
            help="Number of blocks, or names of the modules that end all but the last. Default: 4.",
        ),
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="Learning rule; docs/rules.md lists them. Default: bll.")
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(help="Family of the messages, NAME or NAME:NUMBER. Default: the rule's own."),
    ] = None,
    rule_option: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Option of the rule, as pool=max:2; repeatable."),
    ] = None,
    width: Annotated[
        int | None,
        typer.Option(help="Hidden units (mlp), or first channels (others). Default: the model's."),
    ] = None,
    executor: Annotated[
        str | None,
        typer.Option(help="sequential, pipelined, graphed or auto. Default: sequential."),
    ] = None,
    depth: Annotated[int | None, typer.Option(help="Blocks in flight. Default: all.")] = None,
    distributed: Annotated[
        bool, typer.Option("--distributed", help="Blocks over the ranks that torchrun started.")
    ] = False,
    micro_batches: Annotated[
        int | None,
        typer.Option(help="Equal parts of a batch: executors, distributed. Default: 1."),
    ] = None,
    batched_blocks: Annotated[
        bool | None,
        typer.Option(
            "--batched-blocks/--no-batched-blocks",
            help="Equal blocks in flight as one batched step (pipelined). Default: no.",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the data. Default: 5.")] = None,
    stop_at: Annotated[
        float | None,
        typer.Option(
            help="Test accuracy, %, that ends the run after the epoch that reaches it. Default: no."
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step. Default: 200 (mlp), 100 (others).")
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Peak learning rate of the schedule. Default: 0.002.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(help="one-cycle, cosine or constant. Default: one-cycle.")
    ] = None,
    optimizer: Annotated[
        str | None, typer.Option(help="adam, adamw or sgd. Default: adam.")
    ] = None,
    momentum: Annotated[
        float | None, typer.Option(help="Nesterov momentum of sgd. Default: 0.")
    ] = None,
    weight_decay: Annotated[
        float | None, typer.Option(help="Of weights; norms and biases have none. Default: 0.")
    ] = None,
    label_smoothing: Annotated[
        float | None, typer.Option(help="Of the last block's cross-entropy. Default: 0.")
    ] = None,
    crop: Annotated[
        int | None,
        typer.Option(help="Black border that training images are cropped from. Default: 0."),
    ] = None,
    flip: Annotated[
        bool | None,
        typer.Option("--flip/--no-flip", help="Mirror every second training image. Default: no."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of everything random. Default: 0, or the recipe's."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N. Default: cpu.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float64 or bfloat16 (autocast). Default: float32.")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(help="CPU threads of one operation; 0 keeps torch's choice. Default: 1."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with its options.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the run in --out.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
) -> None:
    """Train a network block-locally (or by backpropagation) and write results to --out."""
    from bll.commands.train import block_ends, rule_options
    from bll.commands.train import train as run

    options = {
        "dataset": dataset,
        "data_dirs": tuple(data_dir) if data_dir else None,
        "model": model,
        "blocks": block_ends(blocks) if blocks is not None else None,
        "rule": rule,
        "family": family,
        "rule_options": rule_options(rule_option) if rule_option else None,
        "width": width,
        "executor": executor,
        "depth": depth,
        "micro_batches": micro_batches,
        "batched_blocks": batched_blocks,
        "epochs": epochs,
        "stop_at": stop_at,
        "batch_size": batch_size,
        "lr": lr,
        "schedule": schedule,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "label_smoothing": label_smoothing,
        "crop": crop,
        "flip": flip,
        "seed": seed,
        "device": device,
        "dtype": dtype,
        "threads": threads,
    }
    if distributed:
        if executor not in (None, "distributed"):
            raise CommandError("distributed: --distributed and --executor exclude each other")
        options["executor"] = "distributed"
    given = {name: value for name, value in options.items() if value is not None}
    run(given, out, recipe=recipe, resume=resume, overwrite=overwrite, quiet=quiet)
