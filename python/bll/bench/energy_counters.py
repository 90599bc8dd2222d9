"""Energy counters: NVIDIA's total-energy counter and RAPL, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

POWERCAP = Path("/sys/class/powercap")


class NoCounter(Exception):
    """Why no energy counter can be read here."""


class CounterReset(Exception):
    """A counter went backwards and does not wrap: what was read before means nothing."""


class Counter(Protocol):
    """A count of joules that only grows."""

    name: str

    def joules(self) -> float:
        """The count now."""


class Monotone:
    """Turns raw readings into a count that only grows, across wrap-arounds.

    Args:
        read: Reads the raw counter, in joules.
        wrap: The raw value at which it starts again from 0, in joules; None if it never does.
    """

    def __init__(self, read: Callable[[], float], wrap: float | None) -> None:
        self._read, self._wrap = read, wrap
        self._last, self._turns = read(), 0

    def joules(self) -> float:
        """The count now. It must be asked for at least once between two wrap-arounds.

        Raises:
            CounterReset: The counter went backwards and does not wrap.
        """
        raw, before = self._read(), self._last
        self._last = raw
        if raw < before:
            if self._wrap is None:
                raise CounterReset(f"from {before:.3f} J to {raw:.3f} J")
            self._turns += 1
        return raw + self._turns * (self._wrap or 0.0)


class NvmlCounter:
    """``nvmlDeviceGetTotalEnergyConsumption`` of one GPU: millijoules since the driver loaded.

    Args:
        uuid: Of the GPU, as NVML writes it ("GPU-..."). An index would not do: NVML counts all GPUs
            of the machine, torch those that CUDA_VISIBLE_DEVICES leaves.
        nvml: The module ``pynvml``.

    Raises:
        NoCounter: NVML is not there, or this GPU has no such counter (it came with Volta).
    """

    name = "NVML total energy"

    def __init__(self, uuid: str, nvml: Any = None) -> None:
        self._nvml = _import_nvml() if nvml is None else nvml
        try:
            self._nvml.nvmlInit()
            # As bytes, which every version of the module takes.
            self._handle = self._nvml.nvmlDeviceGetHandleByUUID(uuid.encode())
        except self._nvml.NVMLError as error:
            raise NoCounter(f"NVML: {error}") from error
        self._count = Monotone(self._read, wrap=None)

    def _read(self) -> float:
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise NoCounter(f"NVML: {error}") from error

    def joules(self) -> float:
        """See `Counter`.

        Raises:
            NoCounter: NVML cannot read it any more.
        """
        return self._count.joules()


def gpu_uuid(device: str) -> str:
    """The name NVML knows torch's GPU by.

    Args:
        device: "cuda" (torch's current GPU) or "cuda:N", as torch counts.

    Raises:
        NoCounter: torch sees no such GPU.
    """
    index = torch.device(device).index
    try:
        chosen = torch.cuda.current_device() if index is None else index
        uuid = str(torch.cuda.get_device_properties(chosen).uuid)
    # No driver, no such index, a torch without CUDA: each raises a class of its own.
    except (RuntimeError, AssertionError, AttributeError) as error:
        raise NoCounter(f"NVML: torch does not tell which GPU {device} is: {error}") from error
    # torch leaves out what NVML begins with.
    return uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"


def _import_nvml() -> Any:
    try:
        import pynvml
    except ImportError as error:
        raise NoCounter("NVML: nvidia-ml-py is not installed (extra `bench`)") from error
    return pynvml


class RaplCounter:
    """The package domains of RAPL: energy of all CPU sockets, without what else is in the box.

    Args:
        root: Folder of the powercap class.

    Raises:
        NoCounter: There is none, or it may not be read.
    """

    name = "RAPL package energy"

    def __init__(self, root: Path = POWERCAP) -> None:
        zones = sorted(root.glob("intel-rapl:[0-9]*"))
        # intel-rapl:0 is a package, intel-rapl:0:1 a part of it.
        packages = [zone for zone in zones if zone.name.count(":") == 1]
        if not packages:
            raise NoCounter(f"RAPL: {root} has no package domain")
        try:
            self._counts = [self._zone(zone) for zone in packages]
        except (OSError, ValueError) as error:
            raise NoCounter(f"RAPL: cannot be read: {error}") from error

    @staticmethod
    def _zone(zone: Path) -> Monotone:
        wrap = int((zone / "max_energy_range_uj").read_text()) / 1e6
        return Monotone(lambda: int((zone / "energy_uj").read_text()) / 1e6, wrap)

    def joules(self) -> float:
        """See `Counter`."""
        return sum(count.joules() for count in self._counts)


def find_counter(device: str) -> Counter:
    """The counter of a device.

    Args:
        device: "cuda" (torch's current GPU), "cuda:N" (as torch counts) or "cpu".

    Raises:
        NoCounter: With the reason.
    """
    if device.startswith("cuda"):
        nvml = _import_nvml()
        return NvmlCounter(gpu_uuid(device), nvml)
    return RaplCounter()


class ZeusCheck:
    """The same window as seen by zeus, another reader of the same counter.

    Args:
        gpus: Indices of the GPUs to watch.

    Raises:
        NoCounter: zeus is not installed, or sees no GPU.
    """

    def __init__(self, gpus: Sequence[int] = (0,)) -> None:
        try:
            from zeus.monitor import ZeusMonitor
        except ImportError as error:
            raise NoCounter("zeus is not installed") from error
        # zeus raises classes of its own, one per vendor's library.
        try:
            self._monitor = ZeusMonitor(gpu_indices=list(gpus))
        except Exception as error:
            raise NoCounter(f"zeus: {type(error).__name__}: {error}") from error

    def begin(self) -> None:
        """A window begins."""
        self._monitor.begin_window("bll")

    def end(self) -> float | None:
        """It ends: joules of all watched GPUs, None where zeus saw none."""
        found = self._monitor.end_window("bll").gpu_energy
        return sum(found.values()) if found else None
