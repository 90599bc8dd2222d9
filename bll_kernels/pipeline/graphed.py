"""The whole step of the executor, optimisers included, captured in one graph of the device.

The first step with a shape runs in lanes and trains; the second is captured and replayed, and so
are all that follow. Capturing runs nothing, so no step is lost and none is done twice.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Batch, StepResult
from bll_kernels.pipeline.device import Device, Work
from bll_kernels.pipeline.draws import seed_streams, streams
from bll_kernels.pipeline.step import Updater
from bll_kernels.pipeline.stream_run import StreamRun
from bll_kernels.pipeline.traced import TraceableBlock, situation

if TYPE_CHECKING:
    from bll_kernels.pipeline.executor import Executor

#: Graphs kept, the ones used last; each has memory of its own.
GRAPHS: Final = 4


class CaptureError(RuntimeError):
    """A step cannot be captured; nothing of it was run.

    Attributes:
        results: Of the batches of the run before it, which were.
    """

    results: Sequence[StepResult] = ()


@dataclass
class _Graph:
    """A captured step and the memory it reads and writes."""

    x: Tensor
    labels: Tensor
    run: StreamRun
    replay: Work
    streams: dict[tuple[int, int], torch.Generator]


class GraphedSteps:
    """Steps of an executor as replays of captured graphs.

    Args:
        executor: Whose steps.
        device: Where.

    Raises:
        ValueError: a block's optimiser keeps state on the host that a replay would not change.
    """

    def __init__(self, executor: Executor, device: Device) -> None:
        for block, updater in zip(executor.blocks, executor.optimizers, strict=True):
            check_capturable(block.name, updater)
        self.executor = executor
        self.device = device
        self._keyed = [b for b in executor.blocks if isinstance(b, TraceableBlock)]
        self._memory: list[tuple[Any, int]] = []
        self._known: set[Any] = set()
        self._graphs: OrderedDict[Any, _Graph] = OrderedDict()

    def run(self, batches: Sequence[Batch]) -> list[StepResult]:
        """Batches in a row, each a step; see there."""
        before = self.executor.batches_done
        results: list[StepResult] = []
        try:
            for x, labels in batches:
                results.append(self.step(x, labels))
                # Random numbers depend on how many there were.
                self.executor.batches_done += 1
        except CaptureError as error:
            error.results = results
            raise
        finally:
            self.executor.batches_done = before
        return results

    def step(self, x: Tensor, labels: Tensor) -> StepResult:
        """One batch.

        Raises:
            CaptureError: the step cannot be captured, as where a block on a GPU draws random
                numbers of the host; nothing of it was run.
        """
        self._forget_other_states()
        held = (situation(x, labels), labels.stride(), self._trace_keys())
        if held not in self._known:
            inputs = self.executor.split(x, labels)
            result = StreamRun(self.executor, self.device, inputs).execute()[0]
            self._known.add(held)
            return result
        key = (held, tuple(_options(updater) for updater in self.executor.optimizers))
        graph = self._graphs.get(key)
        if graph is None:
            graph = self._graphs[key] = self._capture(x, labels)
        self._graphs.move_to_end(key)
        while len(self._graphs) > GRAPHS:
            self._graphs.popitem(last=False)
        return self._replay(graph, x, labels)

    def _forget_other_states(self) -> None:
        """Where an optimiser has loaded a state or got a group, graphs update what it had before.

        The next step runs in lanes again, since a capture must not make the state it updates.
        """
        holders = [_holder("", updater) for updater in self.executor.optimizers]
        memory = [(getattr(held, "state", None), len(held.param_groups)) for held in holders]
        if len(memory) != len(self._memory) or any(
            state is not before or count != groups
            for (state, count), (before, groups) in zip(memory, self._memory, strict=True)
        ):
            self._memory = memory
            self._known.clear()
            self._graphs.clear()

    def _trace_keys(self) -> tuple[Hashable, ...]:
        """What the Python code of the blocks depends on: a replay does not run it again."""
        return tuple(block.trace_key() for block in self._keyed)

    def _capture(self, x: Tensor, labels: Tensor) -> _Graph:
        for block, on_host in zip(self.executor.blocks, self.executor.draws_on_host, strict=True):
            if on_host:
                raise CaptureError(
                    f"block {block.name!r} draws random numbers on the host, and every replay of a "
                    "graph would use the same ones"
                )
        own_x, own_labels = torch.empty_like(x), torch.empty_like(labels)
        drawn = streams(self.executor, self.device)
        inputs = self.executor.split(own_x, own_labels)
        run = StreamRun(self.executor, self.device, inputs, drawn)
        try:
            replay = self.device.capture(run.issue, list(drawn.values()))
        # Whatever refuses to be captured, on the host or on the device, has run nothing.
        except Exception as error:
            for step in self.executor.steps:
                step.drop()
            raise CaptureError(f"the step cannot be captured: {error}") from error
        return _Graph(own_x, own_labels, run, replay, drawn)

    def _replay(self, graph: _Graph, x: Tensor, labels: Tensor) -> StepResult:
        caller = self.device.caller()
        found: list[StepResult] = []

        def fill() -> None:
            graph.x.copy_(x)
            graph.labels.copy_(labels)

        def read() -> None:
            # The next replay writes to the same memory.
            result = graph.run.results[0]
            losses = {name: loss.clone() for name, loss in result.losses.items()}
            found.append(StepResult(losses, result.output.clone()))

        self.device.launch(caller, fill)
        # On the host: a replay takes the seeds along.
        seed_streams(self.executor, graph.streams)
        graph.replay()
        self.device.launch(caller, read)
        self.device.settle()
        return found[0]


def check_capturable(block: str, updater: Updater) -> None:
    """Refuses an optimiser whose steps a graph cannot hold.

    Raises:
        ValueError: its state is on the host, or its options cannot be seen.
    """
    for group in _groups(block, updater):
        if group.get("capturable") is False:
            raise ValueError(
                f"optimizer_factory: expected an optimiser that can be captured for block "
                f"{block!r}, got {type(updater).__name__} with capturable=False"
            )
        rate = group.get("lr")
        if isinstance(rate, Tensor) and any(rate.device != p.device for p in group["params"]):
            raise ValueError(
                f"optimizer_factory: expected a learning rate for block {block!r} that is a "
                f"number, or a tensor on its parameters' device, got one on {rate.device}"
            )


def _holder(block: str, updater: Updater) -> Any:
    for holder in (updater, getattr(updater, "optimizer", None)):
        if getattr(holder, "param_groups", None) is not None:
            return holder
    raise ValueError(
        f"optimizer_factory: expected an optimiser with param_groups for block {block!r}, got "
        f"{type(updater).__name__}"
    )


def _groups(block: str, updater: Updater) -> Sequence[dict[str, Any]]:
    return list(_holder(block, updater).param_groups)


def _options(updater: Updater) -> Any:
    """What a graph holds of an optimiser: numbers, and where tensors lie; others need a new one."""
    return tuple(
        tuple(
            (name, value.data_ptr() if isinstance(value, Tensor) else value)
            for name, value in sorted(group.items())
            if name != "params"
        )
        for group in _groups("", updater)
    )
