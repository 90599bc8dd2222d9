"""What the executor asks of a device that works asynchronously: lanes, marks, graphs."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bll_kernels.pipeline.block import Block
from bll_kernels.pipeline.events import Clock

#: A queue of work that runs in order, such as a CUDA stream; only its device looks inside.
Lane = Any
#: A point in a lane, such as a CUDA event.
Mark = Any
Work = Callable[[], None]


class Device(Protocol):
    """Runs work in lanes; only `wait` orders one lane after another."""

    def lane(self, number: int) -> Lane:
        """The lane of this number; always the same one."""

    def caller(self) -> Lane:
        """The lane in which the caller's own work runs."""

    def launch(self, lane: Lane, work: Work) -> None:
        """Puts work at the end of a lane."""

    def record(self, lane: Lane) -> Mark:
        """Marks the end of what a lane has been given so far."""

    def wait(self, lane: Lane, mark: Mark) -> None:
        """Lets the lane's further work begin only when the mark is reached."""

    def retire(self, tensor: Tensor) -> None:
        """Called inside work of the lane that made a tensor, before its last reference is dropped.

        The lane's further work may get the memory.
        """

    def settle(self) -> None:
        """Lets the host go on: results of work launched so far may be used in the caller's lane."""

    def synchronize(self) -> None:
        """Waits until all work is done."""

    def random_stream(self) -> torch.Generator:
        """Random numbers of their own, for work that is captured."""

    def drawing(self, stream: torch.Generator) -> AbstractContextManager[None]:
        """Inside, in captured work, torch's random numbers come from the stream."""

    def capture(self, work: Work, streams: Sequence[torch.Generator] = ()) -> Work:
        """Records what `work` launches, without running it; the result runs it all again.

        Args:
            work: What is captured.
            streams: From which it draws. A replay draws what each gives from its seed at that time.

        Raises:
            RuntimeError: something in it cannot be captured.
        """

    def clock(self) -> Clock:
        """A clock whose marks are points of the lane they are made in."""


class CudaDevice:
    """Streams, events and graphs of CUDA. Not yet shown on a GPU.

    Nothing waits on the host. Memory belongs to the stream that allocated it: whoever drops the
    last reference has let that stream wait for every reader before, so `record_stream` is not
    needed.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._lanes: dict[int, torch.cuda.Stream] = {}
        self._capture_lane: torch.cuda.Stream | None = None

    def lane(self, number: int) -> Lane:
        """See `Device`."""
        if number not in self._lanes:
            self._lanes[number] = torch.cuda.Stream(self.device)
        return self._lanes[number]

    def caller(self) -> Lane:
        """See `Device`."""
        return torch.cuda.current_stream(self.device)

    def launch(self, lane: Lane, work: Work) -> None:
        """See `Device`."""
        with torch.cuda.stream(lane):
            work()

    def record(self, lane: Lane) -> Mark:
        """See `Device`."""
        return lane.record_event()

    def wait(self, lane: Lane, mark: Mark) -> None:
        """See `Device`."""
        lane.wait_event(mark)

    def retire(self, tensor: Tensor) -> None:
        """See `Device`; dropping the reference is all."""

    def settle(self) -> None:
        """See `Device`; work of the caller's stream is ordered by the stream."""

    def synchronize(self) -> None:
        """See `Device`."""
        torch.cuda.synchronize(self.device)

    def random_stream(self) -> torch.Generator:
        """See `Device`."""
        return torch.Generator(self.device)

    @contextmanager
    def drawing(self, stream: torch.Generator) -> Iterator[None]:
        """See `Device`; the current generator stands for the stream, whose state a graph keeps."""
        index = self.device.index
        at = torch.cuda.current_device() if index is None else index
        generator = torch.cuda.default_generators[at]
        before = generator.graphsafe_get_state()
        generator.graphsafe_set_state(stream)
        try:
            yield
        finally:
            generator.graphsafe_set_state(before)

    def capture(self, work: Work, streams: Sequence[torch.Generator] = ()) -> Work:
        """See `Device`."""
        if self._capture_lane is None:
            self._capture_lane = torch.cuda.Stream(self.device)
        with torch.cuda.device(self.device):
            try:
                return self._captured(self._capture_lane, work, streams)
            except BaseException:
                # A capture that could not be ended leaves a generator behind that waits for its
                # end; the end of another one sets it free.
                with suppress(RuntimeError):
                    empty = partial(torch.zeros, 1, device=self.device)
                    self._captured(self._capture_lane, empty, ())
                raise

    def _captured(
        self,
        lane: torch.cuda.Stream,
        work: Callable[[], object],
        streams: Sequence[torch.Generator],
    ) -> Work:
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        for stream in streams:
            graph.register_generator_state(stream)
        before = torch.cuda.current_stream(self.device)
        failure: BaseException | None = None
        try:
            with (
                _no_collection(),
                torch.cuda.graph(graph, pool=pool, stream=lane, capture_error_mode="thread_local"),
            ):
                try:
                    work()
                except BaseException as error:
                    failure = error
                    self._rejoin(lane)
        except BaseException as error:
            self._abandon(pool)
            # What ended the work is the cause of whatever its end says.
            raise error if failure is None else failure from None
        finally:
            # The end of a capture restores the stream only where it does not fail.
            torch.cuda.set_stream(before)
        if failure is not None:
            raise failure
        return graph.replay

    def _abandon(self, pool: tuple[int, int]) -> None:
        """Tell the allocator that a capture is over: where its end fails, torch does not."""
        index = torch.cuda.current_device()
        # Refused where torch has done it.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(index, pool)
            torch._C._cuda_releasePool(index, pool)

    def _rejoin(self, captured: torch.cuda.Stream) -> None:
        """Lead lanes that take part in a capture back into it: without them it has no end."""
        for lane in self._lanes.values():
            with torch.cuda.stream(lane), suppress(RuntimeError):
                if torch.cuda.is_current_stream_capturing():
                    captured.wait_stream(lane)

    def clock(self) -> Clock:
        """See `Device`."""
        return _CudaClock(self.device)


def default_device(blocks: Sequence[Block]) -> Device | None:
    """The GPU that holds the blocks' parameters, or None where they are on the CPU.

    Raises:
        ValueError: they are on several devices, or on one of another kind.
    """
    found = {parameter.device for block in blocks for parameter in block.parameters()}
    if len(found) > 1 or any(device.type not in ("cpu", "cuda") for device in found):
        names = ", ".join(sorted(map(str, found)))
        raise ValueError(f"blocks: expected parameters on the CPU or on one GPU, got {names}")
    return next((CudaDevice(device) for device in found if device.type == "cuda"), None)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without garbage collection: a graph that it frees inside a capture would spoil that."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _CudaClock:
    """Timed events, in nanoseconds after the first."""

    def __init__(self, device: torch.device) -> None:
        self.first = torch.cuda.Event(enable_timing=True)
        self.first.record(torch.cuda.current_stream(device))

    def mark(self) -> torch.cuda.Event:
        """An event in the current stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def nanoseconds(self, mark: torch.cuda.Event) -> int:
        """See `Clock`."""
        mark.synchronize()
        milliseconds: float = self.first.elapsed_time(mark)
        return round(1e6 * milliseconds)
