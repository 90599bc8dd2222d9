"""Builds, tests, sanitizes and measures on a machine with a GPU, and writes what it found.

    python -m bench.gpu --out DIR                  a selection of everything
    python -m bench.gpu --out DIR --stage kernels  one stage in full
    python -m bench.gpu --out DIR --stage table1 --data-dir DATA   the published table, in parts

A second run into the same DIR with the same commit goes on where the first stopped. DIR then holds
gpu.json, gpu.md and gpu.log.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from bench.gpu.record import Record
from bench.gpu.stages import ON_REQUEST, STAGES, Run, run_stage


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where every stage passed, 1 where one failed, 2 where nothing could run."""
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
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu: torch sees no GPU here", file=sys.stderr)
        return 2
    run = Run(
        Record(options.out),
        deadline=time.monotonic() + options.budget,
        full=options.stage is not None,
        dry=options.dry_run,
        data_dirs=tuple(options.data_dir),
        epochs=options.epochs,
    )
    everything = [name for name in STAGES if name not in ON_REQUEST]
    names = [options.stage] if options.stage else everything
    passed = [run_stage(name, run) for name in names]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
