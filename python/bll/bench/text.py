"""Numbers and conditions of a run in words; shared by terminal, Markdown and page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

HOW_TO_READ = (
    "Under each name: ours, then the same result by other means and how many times longer that",
    "took (median of the interleaved rounds, and their quartiles). 'error' is that of the gradient",
    "against float64. 'n% of copy' (of matmul): the time that a plain copy of the same bytes (the",
    "same matrix products at full speed) takes on this machine, by our time: 100% is the limit.",
)
#: Headings of the groups of entries.
HEADINGS = {
    "kernel": "Losses and their gradients",
    "step": "Training steps",
    "schedule": "Schedules",
    "memory": "Memory",
}


def seconds_text(seconds: float) -> str:
    """A time with its unit."""
    for limit, factor, unit in ((1e-3, 1e6, "us"), (1.0, 1e3, "ms")):
        if seconds < limit:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds:.3g} s"


def bytes_text(count: float) -> str:
    """A number of bytes with its unit."""
    for limit, factor, unit in ((1e3, 1.0, "B"), (1e6, 1e3, "kB"), (1e9, 1e6, "MB")):
        if count < limit:
            return f"{count / factor:.3g} {unit}"
    return f"{count / 1e9:.3g} GB"


def ratio_text(peer: Mapping[str, Any]) -> str:
    """A ratio with its spread."""
    return f"{peer['ratio']:.2f}x [{peer['ratio_low']:.2f}, {peer['ratio_high']:.2f}]"


def error_text(error: float | None) -> str:
    """A relative error."""
    return "-" if error is None else f"{error:.1e}"


def limit_text(entry: Mapping[str, Any]) -> str:
    """How near an entry comes to the limit that binds it."""
    if entry.get("of_limit") is None:
        return "-"
    rate = entry.get("bytes_per_second")
    achieved = f", {rate / 1e9:.1f} GB/s" if rate else ""
    return f"{entry['of_limit']:.0%} of {entry['bound_by']}{achieved}"


def busy_text(now: Mapping[str, Any]) -> str | None:
    """A warning where the machine did other work when the run began, else None."""
    load = (now.get("device_state_at_start") or {}).get("load_average")
    cores = now.get("logical_processors")
    if load is None or not cores or load <= 0.5 * cores:
        return None
    return (
        f"This machine was busy (load {load:.1f} on {cores} processors): trust ratios whose "
        "quartiles lie close together, and no times."
    )


def condition_lines(now: Mapping[str, Any]) -> list[str]:
    """Conditions of a run, in sentences short enough for a caption."""
    versions = now.get("versions", {})
    commit = now.get("commit")
    source = "no commit known" if commit is None else f"commit {commit[:10]}"
    if now.get("uncommitted_changes"):
        source += " with uncommitted changes"
    load = (now.get("device_state_at_start") or {}).get("load_average")
    busy = "" if load is None else f", load average at start {load:.1f}"
    served = [name for name, reason in now.get("backends", {}).items() if reason is None]
    threads = now.get("threads")
    return [
        f"{now.get('device_name', 'unknown device')} ({now.get('device')}), "
        f"{now.get('logical_processors')} logical processors{busy}; {now.get('timer')}, "
        f"{threads} thread{'s' if threads != 1 else ''}; {now.get('malloc')}.",
        f"bll-kernels {versions.get('bll-kernels')} ({source}), backends {', '.join(served)}; "
        f"torch {versions.get('torch')}, Python {versions.get('python')}; {now.get('date')}.",
    ]
