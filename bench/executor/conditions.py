"""What a result of these commands was measured with."""

from __future__ import annotations

import os
import time
from typing import Any

from bll.training import machine


def conditions(load_before: float) -> dict[str, Any]:
    """Processor, load, date, commit and versions, as a result file holds them.

    Args:
        load_before: Load average before the measurement.
    """
    commit, changes = machine.commit()
    return {
        "processor": machine.processor_name(),
        "processors": len(os.sched_getaffinity(0)),
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit,
        "commit_has_changes": changes,
        "versions": machine.versions(),
    }
