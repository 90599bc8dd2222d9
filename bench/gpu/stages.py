"""The stages of a GPU run. A stage that fails is reported and does not hide the others.

This process builds and waits: whatever touches the device, or loads what was built, is a process of
its own (`bench.gpu.children`, suites, sanitizers).
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch

from bench.gpu import children, sanitize, serving, suites, verdicts
from bench.gpu.commands import execute
from bench.gpu.record import ROOT
from bench.gpu.run import NotFinished, Run, StageFailed

#: Where the build puts the libraries.
LIBRARIES: Final = ROOT / "bll_kernels"


def build(run: Run) -> str:
    """Compiles `_C` and `_C_cuda` in place against the torch that is here; downloads nothing.

    For the GPU that is here alone, which takes a third of the time.
    """
    if run.dry:
        serving.ask(run)
        return "dry run: nothing built"
    if shutil.which("nvcc") is None:
        raise StageFailed("nvcc was not found")
    major, minor = torch.cuda.get_device_capability()
    settings = {"BLL_BUILD": "cuda", "BLL_CUDA_ARCHS": f"{major}{minor}"}
    # A build that is cut must not leave those of other sources to be measured; objects stay.
    for library in LIBRARIES.glob("_C*.so"):
        library.unlink()
    execute(run, [sys.executable, "setup.py", "-q", "build_ext", "--inplace"], settings)
    found = serving.ask(run)
    reasons = {"_C": found["backends"]["native"], "_C_cuda": found["native_cuda"]}
    failed = [f"{name}: {reason}" for name, reason in reasons.items() if reason is not None]
    if failed:
        raise StageFailed(f"built, but not loaded: {'; '.join(failed)}")
    return f"against torch {torch.__version__} for {major}.{minor}"


def tests(run: Run) -> str:
    """The kernels' numerical suites and the device tests, on the GPU."""
    return suites.run_suites(run)


def sanitizer(run: Run) -> str:
    """compute-sanitizer over one call of every kernel."""
    if run.dry:
        return "dry run: nothing sanitized"
    now = run.record.now
    # Known where this run has built.
    found = now if "native_cuda" in now else serving.ask(run)
    return sanitize.run_sanitizer(run, serving.backends(found, run.dry))


def speed(run: Run) -> str:
    """Every kernel against its peers."""
    children.supervise(run, "kernels")
    return verdicts.kernels(run.record)


def pipeline(run: Run) -> str:
    """The executor's modes against autograd and backpropagation."""
    children.supervise(run, "executor")
    return verdicts.executor(run.record)


def accuracy(run: Run) -> str:
    """The published table, trained from its recipes."""
    run.record.stages.pop("table1", None)
    run.record.flush()
    children.supervise(run, "table1")
    found = run.record.stages.get("table1")
    if found is None:
        raise StageFailed("its process was ended at the deadline; the same command goes on")
    if found["result"] == "FAILED":
        raise StageFailed(found["note"])
    if found["result"] != "passed":
        raise NotFinished(found["note"])
    return str(found["note"])


STAGES: Final[dict[str, Callable[[Run], str]]] = {
    "build": build,
    "tests": tests,
    "sanitizer": sanitizer,
    "kernels": speed,
    "executor": pipeline,
    "table1": accuracy,
}
#: Stages that only run where they are asked for: they take many calls.
ON_REQUEST: Final = frozenset({"table1"})
#: Shares of the time in a selection of everything. What a stage does not need, those after it get;
#: what it needs beyond, it does not get: the next begins.
#: Without a build nothing of ours is measured, so it has the most.
SHARES: Final = {"build": 0.32, "tests": 0.25, "sanitizer": 0.12, "kernels": 0.18, "executor": 0.13}


def deadlines(begin: float, seconds: float) -> dict[str, float]:
    """When each stage of a selection must have ended."""
    ends, share = {}, 0.0
    for name in SHARES:
        share += SHARES[name]
        ends[name] = begin + share * seconds
    return ends


def run_selection(run: Run, begin: float) -> bool:
    """Runs every stage that is not only on request, each within its share; True if all passed."""
    ends = deadlines(begin, run.deadline - begin)
    return all([run_stage(name, replace(run, deadline=end)) for name, end in ends.items()])


def run_stage(name: str, run: Run) -> bool:
    """Runs one stage and files how it ended; True where it passed."""
    run.record.log(f"== {name}")
    start = time.monotonic()
    try:
        note, result = STAGES[name](run), "passed"
    except NotFinished as error:
        note, result = str(error), "not finished"
    # The next stage runs whatever happened in this one; the record says what did.
    except Exception as error:
        note, result = f"{type(error).__name__}: {error}", "FAILED"
    seconds = time.monotonic() - start
    run.record.stage(name, result=result, seconds=round(seconds, 1), note=note.replace("|", "/"))
    run.record.log(f"== {name}: {result} in {seconds:.0f} s: {note}")
    return result == "passed"
