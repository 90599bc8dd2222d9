"""``bll train``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bll.commands.errors import INTERRUPTED, CommandError
from bll.commands.progress import ConsoleObserver, print_certificate, print_results
from bll.errors import CheckpointError, RankFailure
from bll.training.checkpoint import INDEX
from bll.training.interrupt import StopRequest
from bll.training.outputs import CHECKPOINT, SUMMARY
from bll.training.recipe import read_recipe
from bll.training.run import Run
from bll.training.trainer import TrainingError


def rule_options(words: Sequence[str]) -> dict[str, str]:
    """Return the values of ``--rule-option NAME=VALUE``, as text by name.

    Raises:
        CommandError: A word is not of this form, or a name is given twice.
    """
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise CommandError(f"rule-option: expected NAME=VALUE, got {word!r}")
        if name in found:
            raise CommandError(
                f"rule-option {name}: expected once, got {found[name]!r} and {value!r}"
            )
        found[name] = value
    return found


def block_ends(text: str) -> int | tuple[str, ...]:
    """Return the number of blocks, or the names that ``--blocks NAME,NAME`` gives."""
    text = text.strip()
    if text.lstrip("+-").isdecimal():
        return int(text)
    return tuple(name.strip() for name in text.split(","))


def train(
    given: Mapping[str, Any],
    out: Path,
    *,
    recipe: Path | None = None,
    resume: bool,
    overwrite: bool,
    quiet: bool,
) -> None:
    """Make the run that was asked for, or one for every seed of the recipe.

    The runs of several seeds are written to ``seed-N`` in ``out``. With ``resume`` those that are
    finished are left alone, and those not begun are begun.

    Args:
        given: Options the user gave, by field name of ``TrainConfig``.
        out: Directory of the run.
        recipe: File of further options.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        quiet: Print nothing but errors.

    Raises:
        CommandError: An option or an input is not usable (2), training failed (1), or the run was
            stopped by a signal after writing a checkpoint (130).
    """
    if resume and overwrite:
        raise CommandError("resume: --resume and --overwrite exclude each other")
    try:
        options, seeds = (dict(given), ()) if recipe is None else _with_recipe(given, recipe)
    except ValueError as error:
        raise CommandError(str(error)) from error
    if len(seeds) < 2:
        if seeds:
            options["seed"] = seeds[0]
        train_one(options, out, resume=resume, overwrite=overwrite, quiet=quiet)
        return
    for seed in seeds:
        place = out / f"seed-{seed}"
        if resume and (place / SUMMARY).exists():
            continue
        begun = resume and (place / CHECKPOINT / INDEX).exists()
        run = {**options, "seed": seed}
        train_one(run, place, resume=begun, overwrite=overwrite, quiet=quiet)


def _with_recipe(given: Mapping[str, Any], recipe: Path) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Options of the file under those given, and the seeds to run.

    Raises:
        RecipeError: The recipe is not usable.
    """
    read = read_recipe(recipe)
    options = {**read.options, **given}
    if "rule_options" in read.options:
        options["rule_options"] = {**read.options["rule_options"], **given.get("rule_options", {})}
    return options, (given["seed"],) if "seed" in given else read.seeds


def train_one(
    given: Mapping[str, Any], out: Path, *, resume: bool, overwrite: bool, quiet: bool
) -> None:
    """Begin or continue a run, train it, and write and print its results.

    Args:
        given: Options by field name of ``TrainConfig``.
        out: Directory of the run.
        resume: Continue the run in ``out``.
        overwrite: Replace the run in ``out``.
        quiet: Print nothing but errors.

    Raises:
        CommandError: An option or an input is not usable (2), training failed (1), or the run was
            stopped by a signal after writing a checkpoint (130).
    """
    if (
        given.get("executor") == "distributed"
        # torchrun starts the same command again after a failure.
        and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
        and (out / CHECKPOINT / INDEX).exists()
    ):
        resume, overwrite = True, False
    try:
        run = Run.resume(out, given) if resume else Run.begin(out, given, overwrite=overwrite)
    except (ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    except RankFailure as error:
        raise CommandError(str(error), exit_code=1) from error
    if not quiet and run.trainer.leads:
        print_certificate(run.trainer)
    try:
        quiet = quiet or not run.trainer.leads
        with StopRequest() as stop, ConsoleObserver(run.trainer, quiet=quiet) as observer:
            finished = run.train(observer, stop)
        results = run.finish() if finished else None
    except (TrainingError, CheckpointError, RankFailure, OSError) as error:
        raise CommandError(str(error), exit_code=1) from error
    if not finished:
        trainer = run.trainer
        raise CommandError(
            f"interrupted in epoch {len(trainer.history) + 1} after {trainer.sampler.position} "
            f"of {trainer.steps_per_epoch} steps; bll train --resume --out {out} continues",
            exit_code=INTERRUPTED,
        )
    if results is not None and not quiet:
        print_results(results, out)
