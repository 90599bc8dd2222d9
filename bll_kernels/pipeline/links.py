"""Connections between ranks: latency and bandwidth."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Link:
    """A connection between neighbouring ranks; both directions at once.

    Attributes:
        name: For reports.
        latency: Seconds from the start of a transfer until its first byte arrives.
        bandwidth: Bytes per second in each direction.
    """

    name: str
    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency < 0 or not self.bandwidth > 0:
            raise ValueError(f"link: expected latency >= 0 and bandwidth > 0, got {self}")


#: Nominal figures of the kinds of link, one direction: NVLink 4 of one GPU, InfiniBand NDR,
#: gigabit Ethernet. Latencies are of the order that collective libraries report.
NVLINK: Final = Link("NVLink", 3e-6, 450e9)
INFINIBAND: Final = Link("InfiniBand", 6e-6, 50e9)
ETHERNET: Final = Link("1 Gb/s", 50e-6, 125e6)
IDEAL: Final = Link("ideal", 0.0, math.inf)
