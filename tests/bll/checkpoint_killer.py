"""Child of a test: writers that are killed at random moments; prints how often each case came.

Run as ``python checkpoint_killer.py DIRECTORY KILLS``. Exits with 1 when a kill left anything but a
whole checkpoint that is at least as new as the last one known to be written.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from bll.training.checkpoint import load_checkpoint, save_checkpoint

SIZE = 50_000


def write_forever(directory: Path, first: int, report: int) -> None:
    number = first
    while True:
        tensors = {"x": torch.full((SIZE,), float(number)), "n": torch.tensor(number)}
        save_checkpoint(directory, tensors, {"number": number})
        os.write(report, number.to_bytes(8, "little"))
        number += 1


def last_reported(reader: int, default: int) -> int:
    content = b""
    while piece := os.read(reader, 1 << 16):
        content += piece
    whole = len(content) // 8 * 8
    return int.from_bytes(content[whole - 8 : whole], "little") if whole else default


def main(directory: Path, kills: int) -> int:
    moments = random.Random(7)
    number = 0
    started = time.monotonic()
    save_checkpoint(directory, {"x": torch.zeros(SIZE), "n": torch.tensor(0)}, {"number": 0})
    # Kills fall into the first few saves, however slow this machine is now.
    longest = max(0.03, 5 * (time.monotonic() - started))
    for _ in range(kills):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            write_forever(directory, number + 1, writer)
        os.close(writer)
        time.sleep(moments.uniform(0.0, longest))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        known = last_reported(reader, number)
        os.close(reader)
        tensors, record = load_checkpoint(directory)
        number = record["number"]
        whole = int(tensors["n"]) == number and bool((tensors["x"] == number).all())
        if not whole or number < known:
            print(f"after {known} came {number}, whole: {whole}")
            return 1
    print(number)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
