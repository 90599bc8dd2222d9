"""A capture on a CUDA device that fails: its cause, the caller's stream, and the next capture.

torch's own graph and streams are stood in for: what is tested is what is asked of them. Not yet
shown on a GPU.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from bll_kernels.pipeline.device import CudaDevice


@dataclass
class Stream:
    name: str
    waited: list[Stream] = field(default_factory=list)

    def wait_stream(self, other: Stream) -> None:
        self.waited.append(other)


class Machine:
    """Streams and captures of one thread. As torch's, the end of a capture fails where a stream
    that takes part has not been led back, and leaves the capturing stream current then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.callers = self.current = Stream("caller")
        self.streams: list[Stream] = []
        self.capturing: list[Stream] = []
        self.captures: list[str] = []
        self.pools: list[tuple[str, tuple[int, int]]] = []
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Stream", self.make)
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(cuda, "set_stream", lambda stream: setattr(self, "current", stream))
        monkeypatch.setattr(cuda, "device", lambda device: self.stream(self.current))
        monkeypatch.setattr(cuda, "stream", self.stream)
        monkeypatch.setattr(cuda, "graph", self.graph)
        monkeypatch.setattr(
            cuda, "is_current_stream_capturing", lambda: self.current in self.capturing
        )
        monkeypatch.setattr(cuda, "graph_pool_handle", lambda: (0, len(self.captures)))
        monkeypatch.setattr(cuda, "current_device", lambda: 0)
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            end = partial(self.end_pool, name.removeprefix("_cuda_"))
            monkeypatch.setattr(torch._C, name, end, raising=False)
        monkeypatch.setattr(torch, "zeros", lambda *size, device: None)

    def make(self, device: torch.device) -> Stream:
        self.streams.append(Stream(f"stream {len(self.streams)}"))
        return self.streams[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(
        self, graph: object, *, pool: tuple[int, int], stream: Stream, capture_error_mode: str
    ) -> Iterator[None]:
        assert not gc.isenabled()
        before, self.current = self.current, stream
        self.capturing = [stream]
        yield
        forked, self.capturing = self.capturing[1:], []
        if any(lane not in stream.waited for lane in forked):
            self.captures.append("not ended")
            raise RuntimeError("capturing stream has unjoined work")
        self.captures.append("ended")
        self.current = before

    def end_pool(self, name: str, device: int, pool: tuple[int, int]) -> None:
        self.pools.append((name, pool))

    def replay(self) -> None: ...


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_what_fails_inside_is_what_is_raised(machine: Machine, kind: type[BaseException]) -> None:
    device = CudaDevice(torch.device("cuda", 0))
    used, idle = device.lane(0), device.lane(1)

    def work() -> None:
        machine.capturing.append(used)
        raise kind("of the block")

    with pytest.raises(kind, match="of the block"):
        device.capture(work)
    assert machine.current is machine.callers
    # The lane in it is led back, one outside is not: it would be drawn in.
    captured = machine.streams[-1]
    assert captured.waited == [used] and not idle.waited
    assert not machine.pools and gc.isenabled()
    assert machine.captures == ["ended", "ended"]  # the failing one, and an empty one behind it
    assert device.capture(lambda: None) == machine.replay


def test_a_capture_that_has_no_end(machine: Machine) -> None:
    device = CudaDevice(torch.device("cuda", 0))
    with pytest.raises(RuntimeError, match="unjoined work"):
        device.capture(lambda: machine.capturing.append(Stream("another")))
    assert machine.current is machine.callers
    assert machine.captures == ["not ended", "ended"]
    # torch has not told its allocator; where a capture ends, that is torch's to do.
    assert machine.pools == [("endAllocateToPool", (0, 0)), ("releasePool", (0, 0))]
    assert gc.isenabled()
