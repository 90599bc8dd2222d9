"""Builds, tests, sanitizes and measures on a machine with a GPU, and writes what it found.

    python -m bench.gpu --out DIR                  a selection of everything, each in its share of
                                                   the time
    python -m bench.gpu --out DIR --stage kernels  one stage in full
    python -m bench.gpu --out DIR --stage table1 --data-dir DATA   the published table, in parts

A second run into the same DIR with the same sources, torch and GPU goes on where the first stopped.
DIR then holds gpu.json, gpu.md and gpu.log. Where there is no .git, BLL_COMMIT names the commit.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch

from bench.gpu.record import Record
from bench.gpu.run import Run
from bench.gpu.stages import STAGES, run_selection, run_stage


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--stage", choices=[*STAGES], help="run this one in full")
    parser.add_argument("--budget", type=float, default=540, help="seconds for the whole run")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny shapes on the CPU: shows that the driver works"
    )
    parser.add_argument(
        "--data-dir", action="append", default=[], help="folder of image files; may be repeated"
    )
    parser.add_argument("--epochs", type=int, help="of table1, in place of its recipes'")
    # How the driver starts the processes of a stage.
    parser.add_argument("--child", type=float, metavar="UNTIL", help=argparse.SUPPRESS)
    parser.add_argument("--full", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every stage passed, 1 where one did not, 2 where nothing could run."""
    begin = time.monotonic()
    options = _options(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu: torch sees no GPU here", file=sys.stderr)
        return 2
    is_child = options.child is not None
    run = Run(
        Record(options.out, joined=is_child),
        deadline=begin + (options.child - time.time() if is_child else options.budget),
        full=options.full if is_child else options.stage is not None,
        dry=options.dry_run,
        data_dirs=tuple(options.data_dir),
        epochs=options.epochs,
    )
    if is_child:
        from bench.gpu.work import perform

        return perform(options.stage, run)
    run.record.flush()
    passed = run_stage(options.stage, run) if options.stage else run_selection(run, begin)
    return 0 if passed else 1


if __name__ == "__main__":
    # Ends by an exception, so that the processes it has started are ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is filed: a library that fails while it is torn down must not make a failure of it.
    os._exit(code)
