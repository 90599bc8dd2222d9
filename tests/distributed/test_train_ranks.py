"""`torchrun -m bll train ... --distributed`: the files of one process, from rank 0."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONS = [
    "--dataset",
    "digits",
    "--model",
    "mlp",
    "--blocks",
    "4",
    "--width",
    "32",
    "--epochs",
    "2",
    "--batch-size",
    "103",
    "--micro-batches",
    "1",
    "--seed",
    "3",
    "--quiet",
]
TORCHRUN = [
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--rdzv-backend",
    "c10d",
    "--rdzv-endpoint",
    "127.0.0.1:0",
    "--local-addr",
    "127.0.0.1",
    "--max-restarts",
    "1",
    "-m",
    "bll",
    "train",
]
#: Seconds; start-up alone takes ten on a busy machine.
LIMIT = 240


def bll_train(words: list[str], *, ranks: bool, code: int = 0) -> str:
    env = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *(TORCHRUN if ranks else ["-m", "bll", "train"]), *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, env=env)
    assert run.returncode == code, run.stderr
    return run.stdout + run.stderr


def epochs(out: Path) -> list[dict[str, str]]:
    rows = list(csv.DictReader((out / "metrics.csv").open()))
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in rows]


@pytest.mark.slow
def test_ranks_write_what_one_process_writes(tmp_path: Path) -> None:
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    bll_train([*OPTIONS, "--executor", "pipelined", "--out", str(alone)], ranks=False)
    bll_train([*OPTIONS, "--distributed", "--out", str(ranks)], ranks=True)
    assert sorted(p.name for p in ranks.iterdir()) == sorted(p.name for p in alone.iterdir())
    assert (ranks / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert epochs(ranks) == epochs(alone)
    summary = json.loads((ranks / "summary.json").read_text())
    assert (summary["executor"], summary["depth"]) == ("distributed", 2)


def test_bad_use_is_one_line(tmp_path: Path) -> None:
    words = [*OPTIONS, "--distributed", "--out", str(tmp_path / "run")]
    assert "start the ranks with torchrun" in bll_train(words, ranks=False, code=2)
    both = [*words, "--executor", "pipelined"]
    assert "exclude each other" in bll_train(both, ranks=False, code=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_restarted_job_goes_on(tmp_path: Path) -> None:
    """A rank dies in the second epoch; torchrun starts both again, from the first's checkpoint."""
    alone, ranks = tmp_path / "alone", tmp_path / "ranks"
    bll_train([*OPTIONS, "--executor", "pipelined", "--out", str(alone)], ranks=False)
    site = tmp_path / "site"
    site.mkdir()
    # Python imports this file at start-up, in every process of the job.
    (site / "sitecustomize.py").write_text(KILLER)
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(site), before])
    try:
        bll_train([*OPTIONS, "--distributed", "--out", str(ranks)], ranks=True)
    finally:
        os.environ["PYTHONPATH"] = before
    assert (site / "killed").exists()
    assert (ranks / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert epochs(ranks) == epochs(alone)


KILLER = """
import os, signal, threading, time
from pathlib import Path

def watch():
    # Rank 1 kills itself once, some time after the first checkpoint is there.
    here = Path(__file__).parent
    out = here.parent / "ranks"
    while not (out / "checkpoint" / "index.json").exists():
        time.sleep(0.001)
    (here / "killed").touch()
    os.kill(os.getpid(), signal.SIGKILL)

first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
if first and os.environ.get("RANK") == "1":
    threading.Thread(target=watch, daemon=True).start()
"""
