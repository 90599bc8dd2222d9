"""The executor's modes on a GPU against local learning by autograd and against backpropagation.

Times are medians of rounds in which everything takes its turn, so ratios are of one run. Where a
peer cannot be built, its failure is filed and its goals count as missed. A mode whose parameters
are not those of "sequential", bit for bit, is filed and not timed.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn

import bll
from bench.gpu.executor_nets import CLASSES, NETS, Net
from bench.gpu.record import Record
from bench.gpu.run import DeviceLost, first_line, require_device
from bench.gpu.verdicts import MODES
from bll_kernels.optim import BlockAdam
from bll_kernels.pipeline.device import CudaDevice
from bll_kernels.pipeline.events import Recorder, chrome_trace
from bll_kernels.pipeline.executor import Executor
from bll_kernels.pipeline.memory import ActivationMeter
from bll_kernels.pipeline.simulated_device import SimulatedDevice

ROUNDS: Final = 7
Step = Callable[[], object]
Made = TypeVar("Made")

# Least time of a peer over that of the best mode.
_LAUNCH_BOUND: Final = {"autograd": 10.0, "compiled local": 2.0, "backprop graph": 1.2}
_FULL: Final = {"graphed, one stream": 1.15, "backprop compiled graph": 1.0}


@dataclass(frozen=True)
class Case:
    """A network and its batch.

    Attributes:
        net: By name.
        batch: Samples.
        steps: Of one sample of time.
        goals: Ratios by peer.
        seconds: That it takes without what is compiled, estimated.
        compiling: Seconds that one compiled peer takes, estimated.
    """

    net: str
    batch: int
    steps: int
    goals: dict[str, float]
    seconds: float
    compiling: float


CASES: Final = {
    "mlp 4x1024, batch 256": Case("mlp", 256, 20, _LAUNCH_BOUND, 15.0, 30.0),
    "transformer 20x64, batch 64": Case("transformer", 64, 5, _LAUNCH_BOUND, 30.0, 150.0),
    "resnet18 bf16, batch 128": Case("resnet18", 128, 5, _FULL, 25.0, 90.0),
    "resnet18 bf16, batch 512": Case("resnet18", 512, 3, _FULL, 30.0, 90.0),
}
TINY: Final = {"mlp, tiny": Case("tiny", 8, 1, {"autograd": 10.0}, 0.0, 0.0)}
#: Seconds of the rounds behind the last peer.
_ROUNDS_TAKE: Final = 10.0


@dataclass(frozen=True)
class Measured:
    """One case on a device, and who must be told what is under way."""

    record: Record
    name: str
    case: Case
    device: str
    deadline: float

    @property
    def net(self) -> Net:
        """The network."""
        return NETS[self.case.net]

    def batch(self) -> tuple[Tensor, Tensor]:
        """Samples and labels."""
        return self.net.batch(self.case.batch, self.device)

    def attempt(self, part: str, make: Callable[[], Made]) -> Made | str:
        """What a part gives, or why it gives nothing: a finding, not the end of the case."""
        before = self.record.without.get(self.name, {})
        if part in before:
            return f"ended the process: {before[part]}"
        self.record.begin("executors", self.name, part, optional=True)
        try:
            return make()
        except Exception as error:
            require_device(self.device, error)
            return first_line(error)


def run(record: Record, device: str, *, deadline: float, tiny: bool = False) -> None:
    """Files a plan, then every case that the record does not have whole and that fits the time.

    Raises:
        DeviceLost: This process cannot go on; what was under way is not filed.
    """
    torch.backends.cudnn.deterministic = True
    if device == "cpu":
        torch.set_num_threads(1)
    chosen = TINY if tiny else CASES
    record.plan("executor", list(chosen))
    for name, case in chosen.items():
        before = record.executors.get(name)
        if before is not None and not before.get("not_reached"):
            continue
        # Again for the sake of a compiled peer only where there is time for that.
        more = case.compiling + _ROUNDS_TAKE if before is not None else 0.0
        if time.monotonic() + case.seconds + more > deadline:
            continue
        asked = Measured(record, name, case, device, deadline)
        record.begin("executors", name, "set-up")
        try:
            entry = _measure(asked)
        except DeviceLost:
            raise
        # A network that fails must not hide the others.
        except Exception as error:
            require_device(device, error)
            entry = {"failure": first_line(error)}
        record.executor(name, entry)
        record.log(f"  {name}: {summary(entry)}")
        if "failure" not in entry and "pipelined" in entry["milliseconds"]:
            drawn = asked.attempt("timeline", lambda asked=asked: _timeline(asked))  # type: ignore[misc]
            record.log(f"  {name}: no timeline: {drawn}" if drawn else f"  {name}: timeline")
            record.finished()


def summary(entry: dict[str, Any]) -> str:
    """One line of the log."""
    if "failure" in entry:
        return f"failed: {entry['failure']}"
    times = ", ".join(f"{peer} {ms:.3f} ms" for peer, ms in entry["milliseconds"].items())
    gates = "".join(f"; GATE FAILED: {k}: {v}" for k, v in entry["gates_failed"].items())
    left = "".join(f"; not reached: {name}" for name in entry["not_reached"])
    return times + gates + left


def _measure(asked: Measured) -> dict[str, Any]:
    case, device = asked.case, asked.device
    x, labels = asked.batch()
    gates_failed = _gate(asked, x, labels)
    asked.record.begin("executors", asked.name, "memory")
    memory = _memory(asked.net, device, x, labels)
    steps, failures, left = _steps(asked, x, labels, gates_failed)
    asked.record.begin("executors", asked.name, "times")
    seconds: dict[str, list[float]] = {peer: [] for peer in steps}
    for _ in range(ROUNDS):
        for peer, step in steps.items():
            seconds[peer].append(_time(step, case.steps, device))
    medians = {peer: 1e3 * statistics.median(found) for peer, found in seconds.items()}
    best = min(medians[mode] for mode in MODES if mode in medians)
    ratios = {peer: middle / best for peer, middle in medians.items() if peer not in MODES}
    met = {
        peer: ratios.get(peer, 0.0) >= goal for peer, goal in case.goals.items() if peer not in left
    }
    met["memory of depth 1 <= 1.1 x largest block"] = memory["ratio"] <= 1.1
    return {
        "milliseconds": medians,
        "ratios": ratios,
        "gates_failed": gates_failed,
        "failures": failures,
        "not_reached": left,
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


def _trained(asked: Measured, mode: str, x: Tensor, labels: Tensor) -> list[Tensor]:
    """Parameters after four steps."""
    model = _wrapped(asked.net, asked.device)
    executor = _executor(model, asked.device, mode)
    for _ in range(4):
        executor.step(x, labels)
    return [p.detach().clone() for p in model.parameters()]


def _gate(asked: Measured, x: Tensor, labels: Tensor) -> dict[str, str]:
    """Modes whose parameters are not those of "sequential", bit for bit, and why.

    Raises:
        Exception: "sequential" itself fails.
    """
    wanted = _trained(asked, "sequential", x, labels)
    failed = {}
    for mode in MODES[1:]:
        found = asked.attempt(f"gate {mode}", lambda mode=mode: _trained(asked, mode, x, labels))  # type: ignore[misc]
        if isinstance(found, str):
            failed[mode] = found
        elif not all(map(torch.equal, found, wanted)):
            failed[mode] = "its parameters differ from those of sequential"
    return failed


def _steps(
    asked: Measured, x: Tensor, labels: Tensor, gates_failed: dict[str, str]
) -> tuple[dict[str, Step], dict[str, str], list[str]]:
    """Everything that can be built, warmed up; why not what cannot; what the time is short for."""
    net, device = asked.net, asked.device

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
    compiled: dict[str, Callable[[], Step]] = {}
    if device != "cpu":
        makers["backprop graph"] = lambda: _graph(_backprop(net.build()[0].to(device), x, labels))
        compiled["compiled local"] = lambda: _local(
            torch.compile(_wrapped(net, device), mode="reduce-overhead"), x, labels
        )
        compiled["backprop compiled graph"] = lambda: _graph(
            _backprop(torch.compile(net.build()[0].to(device)), x, labels)
        )
    steps, failures, left = {}, {}, []
    for name, make in {**makers, **compiled}.items():
        if name.partition(",")[0] in gates_failed:
            continue
        takes = asked.case.compiling + _ROUNDS_TAKE
        if name in compiled and time.monotonic() + takes > asked.deadline:
            left.append(name)
            continue
        step = asked.attempt(name, lambda make=make: _warm(make()))  # type: ignore[misc]
        if isinstance(step, str):
            failures[name] = step
        else:
            steps[name] = step
    return steps, failures, left


def _warm(step: Step) -> Step:
    for _ in range(4):
        step()
    return step


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
    return CudaDevice(torch.device("cuda", torch.cuda.current_device())).capture(step)


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


def _timeline(asked: Measured) -> None:
    """The pipelined run as the device saw it, which shows whether streams overlap."""
    net, device = asked.net, asked.device
    x, labels = asked.batch()
    executor = _executor(_wrapped(net, device), device, "pipelined")
    batches = [(x, labels)] * 4
    executor.run(batches)
    clock = None if device == "cpu" else CudaDevice(x.device).clock()
    with executor.watched(Recorder(clock=clock)) as recorder:
        executor.run(batches)
    text = json.dumps(chrome_trace({asked.name: recorder.events()}))
    file = "timeline-" + "".join(c if c.isalnum() else "-" for c in asked.name) + ".json"
    (asked.record.folder / file).write_text(text + "\n")
