"""The executor's modes on a GPU against local learning by autograd and against backpropagation.

Times are medians of rounds in which everything takes its turn, so ratios are of one run. Where a
peer cannot be built, its failure is filed and its goals count as missed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

import bll
from bench.gpu.executor_nets import CLASSES, NETS, Net
from bench.gpu.record import Record
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.device import CudaDevice
from bll_kernels.pipeline.events import Recorder, chrome_trace
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.memory import ActivationMeter
from bll_kernels.pipeline.simulated_device import SimulatedDevice

ROUNDS: Final = 7
MODES: Final = ("sequential", "pipelined", "graphed")
Step = Callable[[], object]

# Least time of a peer over that of the best mode.
_LAUNCH_BOUND: Final = {"autograd": 10.0, "compiled local": 2.0, "backprop graph": 1.2}
_FULL: Final = {"graphed, one stream": 1.15, "backprop compiled graph": 1.0}


@dataclass(frozen=True)
class Case:
    """A network and its batch; `goals` are ratios by peer, `steps` the steps of one sample."""

    net: str
    batch: int
    steps: int
    goals: dict[str, float]


CASES: Final = {
    "mlp 4x1024, batch 256": Case("mlp", 256, 20, _LAUNCH_BOUND),
    "transformer 20x64, batch 64": Case("transformer", 64, 5, _LAUNCH_BOUND),
    "resnet18 bf16, batch 128": Case("resnet18", 128, 5, _FULL),
    "resnet18 bf16, batch 512": Case("resnet18", 512, 3, _FULL),
}
TINY: Final = {"mlp, tiny": Case("tiny", 8, 1, {"autograd": 10.0})}


def run(record: Record, device: str, *, deadline: float, tiny: bool = False) -> str:
    """Measures every case and files it; a gate of equal bits comes first.

    Raises:
        AssertionError: a mode's parameters differ from those of "sequential".
    """
    torch.backends.cudnn.deterministic = True
    if device == "cpu":
        torch.set_num_threads(1)
    missed, done = [], 0
    for name, case in (TINY if tiny else CASES).items():
        if time.monotonic() > deadline:
            break
        entry = _measure(record, name, case, device)
        record.executor(name, entry)
        done += 1
        missed += [f"{name}: {peer}" for peer, met in entry["goals_met"].items() if not met]
    return f"{done} cases; goals missed: {', '.join(missed) or 'none'}"


def _measure(record: Record, name: str, case: Case, device: str) -> dict[str, Any]:
    net = NETS[case.net]
    x, labels = net.batch(case.batch, device)
    _gate(net, device, x, labels)
    steps, failures = _steps(net, device, x, labels)
    seconds: dict[str, list[float]] = {peer: [] for peer in steps}
    for _ in range(ROUNDS):
        for peer, step in steps.items():
            seconds[peer].append(_time(step, case.steps, device))
    medians = {peer: 1e3 * statistics.median(found) for peer, found in seconds.items()}
    best = min(medians[mode] for mode in MODES if mode in medians)
    ratios = {peer: middle / best for peer, middle in medians.items() if peer not in MODES}
    memory = _memory(net, device, x, labels)
    if not failures.get("pipelined"):
        _timeline(record, name, net, device, x, labels)
    met = {peer: ratios.get(peer, 0.0) >= goal for peer, goal in case.goals.items()}
    met["memory of depth 1 <= 1.1 x largest block"] = memory["ratio"] <= 1.1
    return {
        "milliseconds": medians,
        "ratios": ratios,
        "failures": failures,
        "goals": case.goals,
        "goals_met": met,
        "memory": memory,
    }


def _wrapped(net: Net, device: str) -> nn.Module:
    torch.manual_seed(0)
    model, cuts = net.build()
    model = model.to(device)
    example = net.batch(2, device)[0]
    return bll.wrap(model, cuts, num_classes=CLASSES, example=example)


def _executor(model: nn.Module, device: str, mode: str, depth: int | None = None) -> Executor:
    blocks = bll.executor(model, BlockAdam).blocks
    where = SimulatedDevice() if device == "cpu" and mode != "sequential" else None
    return Executor(blocks, BlockAdam, mode=mode, depth=depth, device=where)


def _gate(net: Net, device: str, x: Tensor, labels: Tensor) -> None:
    found = {}
    for mode in MODES:
        model = _wrapped(net, device)
        executor = _executor(model, device, mode)
        for _ in range(4):
            executor.step(x, labels)
        found[mode] = [p.detach().clone() for p in model.parameters()]
    for mode, parameters in found.items():
        for left, right in zip(parameters, found["sequential"], strict=True):
            assert torch.equal(left, right), f"{mode} differs from sequential"


def _steps(
    net: Net, device: str, x: Tensor, labels: Tensor
) -> tuple[dict[str, Step], dict[str, str]]:
    """Everything that can be built, warmed up; and why not what cannot."""

    def executed(mode: str, depth: int | None = None) -> Step:
        executor = _executor(_wrapped(net, device), device, mode, depth)
        return lambda: executor.step(x, labels)

    makers: dict[str, Callable[[], Step]] = {
        "sequential": lambda: executed("sequential"),
        "pipelined": lambda: executed("pipelined"),
        "graphed": lambda: executed("graphed"),
        "graphed, one stream": lambda: executed("graphed", 1),
        "autograd": lambda: _local(_wrapped(net, device), x, labels),
        "backprop": lambda: _backprop(net.build()[0].to(device), x, labels),
    }
    if device != "cpu":
        makers |= {
            "compiled local": lambda: _local(
                torch.compile(_wrapped(net, device), mode="reduce-overhead"), x, labels
            ),
            "backprop graph": lambda: _graph(_backprop(net.build()[0].to(device), x, labels)),
            "backprop compiled graph": lambda: _graph(
                _backprop(torch.compile(net.build()[0].to(device)), x, labels)
            ),
        }
    steps, failures = {}, {}
    for name, make in makers.items():
        try:
            step = make()
            for _ in range(4):
                step()
            steps[name] = step
        # A peer that this torch or this GPU cannot run is a finding, not the end of the stage.
        except Exception as error:
            failures[name] = f"{type(error).__name__}: {error}"[:300]
    return steps, failures


def _local(model: Any, x: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=x.is_cuda)

    def step() -> None:
        out = model(x, y=labels)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _backprop(model: Any, x: Tensor, labels: Tensor) -> Step:
    optimizer = torch.optim.Adam(model.parameters(), fused=True, capturable=x.is_cuda)

    def step() -> None:
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def _graph(step: Step) -> Step:
    """A whole step in one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(4):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _time(step: Step, steps: int, device: str) -> float:
    """Seconds of a step, the device's work included."""
    if device != "cpu":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / steps


def _memory(net: Net, device: str, x: Tensor, labels: Tensor) -> dict[str, Any]:
    """Activations of depth 1 against those of the largest block alone, in bytes."""
    executor = _executor(_wrapped(net, device), device, "sequential")
    executor.step(x, labels)
    with executor.watched(ActivationMeter()) as meter:
        executor.step(x, labels)
    inputs = {0: 0, **{block + 1: size for block, size in meter.outputs.items()}}
    largest = max(meter.private[k] + meter.outputs[k] + inputs[k] for k in meter.private)
    return {"depth_1": meter.peak, "largest": largest, "ratio": meter.peak / largest}


def _timeline(record: Record, name: str, net: Net, device: str, x: Tensor, labels: Tensor) -> None:
    """The pipelined run as the device saw it, which shows whether streams overlap."""
    executor = _executor(_wrapped(net, device), device, "pipelined")
    batches = [(x, labels)] * 4
    executor.run(batches)
    clock = None if device == "cpu" else CudaDevice(x.device).clock()
    with executor.watched(Recorder(clock=clock)) as recorder:
        executor.run(batches)
    text = json.dumps(chrome_trace({name: recorder.events()}))
    file = "timeline-" + "".join(c if c.isalnum() else "-" for c in name) + ".json"
    (record.folder / file).write_text(text + "\n")
