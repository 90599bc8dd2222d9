"""The command ``bll``. Only options live here: a command imports what it needs when it runs."""

from __future__ import annotations

import importlib.util
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from bll.commands.errors import BAD_INPUT, INTERRUPTED, CommandError
from bll.commands.train_options import train

app = typer.Typer(
    name="bll",
    help="Block-local learning: train, measure, and see what this machine can do.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    """Print the version without importing the kernels, and torch with them."""
    if not wanted:
        return
    spec = importlib.util.find_spec("bll_kernels")
    assert spec is not None and spec.submodule_search_locations
    version = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "_version.py"))
    print(f"bll {version['__version__']}")
    raise typer.Exit


@app.callback()
def _group(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Keep ``bll`` a group of commands however many there are."""


app.command()(train)


@app.command()
def trace(
    out: Annotated[Path, typer.Option(help="Directory for trace.json and trace.png.")],
    model: Annotated[str, typer.Option(help="mlp, resnet10, resnet18 or resnet50.")] = "mlp",
    blocks: Annotated[int, typer.Option(help="Number of blocks.")] = 4,
    width: Annotated[
        int | None, typer.Option(help="Width of the network. Default: model's.")
    ] = None,
    rule: Annotated[str, typer.Option(help="bll or bll-kl.")] = "bll",
    depth: Annotated[
        int | None, typer.Option(help="Blocks in flight of the pipelined run. Default: all.")
    ] = None,
    micro_batches: Annotated[int, typer.Option(help="Equal parts of a batch.")] = 1,
    batch_size: Annotated[int, typer.Option(help="Images per step.")] = 256,
    batches: Annotated[int, typer.Option(help="Batches to record.")] = 4,
    threads: Annotated[int, typer.Option(help="CPU threads of one operation.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the weights and the images.")] = 0,
) -> None:
    """Record backpropagation, sequential and pipelined local steps on random images (CPU)."""
    from bll.commands.trace import TraceOptions
    from bll.commands.trace import trace as run

    run(
        out,
        TraceOptions(
            model=model,
            blocks=blocks,
            width=width,
            rule=rule,
            depth=depth,
            micro_batches=micro_batches,
            batch_size=batch_size,
            batches=batches,
            threads=threads,
            seed=seed,
        ),
    )


@app.command()
def doctor(
    file: Annotated[Path | None, typer.Argument(help="With --json: write to this file.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Show versions, the backends and why not, and what each operation will use."""
    from bll.commands.doctor import doctor as run

    run(file, as_json=json)


@app.command()
def bench(
    file: Annotated[Path | None, typer.Argument(help="With --json: write to this file.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few losses and a training step, in under 90 s.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Write JSON; without a file, to standard output.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="kernels, steps, memory or schedules; may be repeated. Default: all."),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    rounds: Annotated[
        int | None, typer.Option(help="Samples of each form. Default: 9, with --quick 7.")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="Seconds after which the rest is left out. Default: 60 with --quick."),
    ] = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="Energy too, where a counter is; minutes per entry.")
    ] = False,
) -> None:
    """Measure speed, memory and accuracy on this machine, against what you would use instead."""
    from bll.commands.bench import bench as run

    run(
        file,
        quick=quick,
        as_json=json,
        suites=suite or (),
        device=device,
        rounds=rounds,
        budget=budget,
        energy=energy,
    )


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="JSON or CSV files, or folders of them.")],
    out: Annotated[Path, typer.Option(help="Folder to write to.")] = Path("runs/report"),
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Compare a base run with later ones; 1 if any is slower."),
    ] = False,
    threshold: Annotated[
        float, typer.Option(help="With --compare: share that an entry may lose.")
    ] = 0.1,
    by: Annotated[
        str, typer.Option(help="With --compare: seconds (same quiet machine), or ratio.")
    ] = "seconds",
) -> None:
    """Turn measurements into a page, tables and pictures; or compare two runs."""
    from bll.commands.report import report as run

    run(paths, out, comparing=compare, threshold=threshold, by=by)


def _fail(message: str, exit_code: int) -> int:
    one_line = " ".join(message.split())
    print(f"bll: {one_line}", file=sys.stderr)
    return exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after ``bll``; those of the process when ``None``.

    Returns:
        0, or 2 for bad options or inputs, 1 for a failure on the way, 130 when interrupted; a
        code other than 0 comes with one line on standard error.
    """
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(args=words, prog_name="bll", standalone_mode=False)
    except CommandError as error:
        return _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", INTERRUPTED)
    except Exception as error:
        # typer reports bad options by exceptions of a class that moved between its versions.
        message = getattr(error, "format_message", None)
        if message is None:
            raise
        return _fail(message(), BAD_INPUT)
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    sys.exit(main())
