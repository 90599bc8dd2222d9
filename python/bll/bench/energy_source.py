"""Where the energy of a benchmark's entries comes from, or why it is null."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from bll.bench.energy import Check, EnergyProtocol, measure_energy
from bll.bench.energy_counters import Counter, NoCounter, ZeusCheck, find_counter
from bll.bench.energy_windows import Clock
from bll.bench.timers import Prepared

NOT_ASKED = "not asked for (--energy)"


def _index(device: str) -> int:
    """Of a GPU as torch counts, which zeus does too."""
    index = torch.device(device).index
    return torch.cuda.current_device() if index is None else index


@dataclass(frozen=True)
class EnergySource:
    """A counter and how it is used, or the reason why energy is not measured."""

    counter: Counter | None = None
    reason: str | None = NOT_ASKED
    protocol: EnergyProtocol | None = None
    clock: Clock | None = None
    check: Check | None = None
    check_reason: str | None = None

    @classmethod
    def of(cls, device: str, asked: bool) -> EnergySource:
        """The counter of a device, if asked for; else whether asking would help."""
        try:
            counter = find_counter(device)
        except NoCounter as error:
            return cls(None, str(error))
        if not asked:
            return cls()
        if not device.startswith("cuda"):
            return cls(counter, None, check_reason="zeus is asked for GPUs only")
        try:
            return cls(counter, None, check=ZeusCheck((_index(device),)))
        except NoCounter as error:
            return cls(counter, None, check_reason=str(error))

    def fields(self, prepared: Mapping[str, Prepared], moved: int) -> dict[str, Any]:
        """``energy`` (by form, per call) and ``energy_reason`` of an entry."""
        if self.counter is None:
            return {"energy": None, "energy_reason": self.reason}
        try:
            found = measure_energy(
                {name: form.sample for name, form in prepared.items()},
                self.counter,
                moved_bytes={name: moved * form.calls for name, form in prepared.items()},
                protocol=self.protocol,
                clock=self.clock,
                check=self.check,
                check_reason=self.check_reason,
            )
        except NoCounter as error:
            return {"energy": None, "energy_reason": str(error)}
        scaled = {name: energy.per_call(prepared[name].calls) for name, energy in found.items()}
        return {
            "energy": {name: energy.as_dict() for name, energy in scaled.items()},
            "energy_reason": None,
        }
