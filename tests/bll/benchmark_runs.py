"""Made-up measurements in every form that the report reads."""

from __future__ import annotations

from typing import Any

from bll.bench.run import SCHEMA

CONDITIONS = {
    "date": "2026-11-24T12:00:00Z",
    "commit": "0123456789abcdef",
    "uncommitted_changes": False,
    "device": "cpu",
    "device_name": "Made-up processor",
    "logical_processors": 4,
    "threads": 1,
    "timer": "process CPU time",
    "malloc": "freed pages are kept (mallopt)",
    "versions": {"bll-kernels": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
    "backends": {"reference": None, "native": None, "triton": "no GPU"},
    "device_state_at_start": {"load_average": 0.3},
}


def entry(name: str, seconds: float, peers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """An entry whose rounds all took the same times."""
    timed = {
        peer: {
            "seconds": seconds * ratio,
            "samples": [seconds * ratio] * 3,
            "ratio": ratio,
            "ratio_low": 0.9 * ratio,
            "ratio_high": 1.1 * ratio,
            "error": 2e-7,
        }
        if isinstance(ratio, float)
        else {"missing": ratio}
        for peer, ratio in peers.items()
    }
    return {
        "name": name,
        "group": "kernel",
        "config": {"function": name.split()[0]},
        "gate": {"error": 1e-7, "allowed": 3e-7, "passed": True},
        "ours": {"seconds": seconds, "samples": [seconds] * 3},
        "peers": timed,
        "bytes": 1_000_000,
        "operations": {"matmul": 1_000_000, "special": 0},
        "bytes_per_second": 1e6 / seconds,
        "copy_bytes_per_second": 2e6 / seconds,
        "matmul_flops_per_second": 4e6 / seconds,
        "bound_by": "copy",
        "of_limit": 0.5,
        "energy": None,
        "energy_reason": "RAPL: no package domain",
        "rejected": None,
        **more,
    }


ENERGY = {
    "gross_joules_per_step": 0.5,
    "net_joules_per_step": 0.4,
    "trials": [0.49, 0.5, 0.51],
    "counter": "simulated",
    "error_bound": 0.002,
}
TIMELINE = {
    "what": "Simulated",
    "operations": [
        {"lane": k, "start": k * 1e-3, "end": (k + 1) * 1e-3, "kind": kind, "block": k}
        | {"micro_batch": 0}
        for k, kind in enumerate(("forward", "loss", "backward", "update"))
    ],
}
MEMORY = [
    {"form": "executor", "depth": 1, "peak_bytes": 10 << 20, "missing": None},
    {"form": "executor", "depth": 2, "peak_bytes": 15 << 20, "missing": None},
    {"form": "backpropagation", "depth": None, "peak_bytes": 30 << 20, "missing": None},
    {"form": "checkpointed", "depth": None, "peak_bytes": None, "missing": "no"},
]


def run() -> dict[str, Any]:
    """A run with something of everything."""
    peers = {"eager autograd": 3.0, "torch.compile": 0.8, "Liger <Kernel>": "needs a GPU"}
    schedule = entry("schedule net", 0.2, {"one block at a time": 1.5}, timeline=TIMELINE)
    return {
        "schema": SCHEMA,
        "conditions": CONDITIONS,
        "entries": [
            entry("posterior_kl | a", 1e-3, peers),
            entry("gram_loss b", 2e-3, peers, energy={"ours": ENERGY}, energy_reason=None),
            schedule | {"group": "schedule", "bytes": None, "matmul_flops_per_second": None},
            {
                "name": "memory net",
                "group": "memory",
                "gate": {"error": None, "passed": True},
                "memory": MEMORY,
                "figures": {"executor, 1 in flight": "10 MB"},
                "energy_reason": "a peak has no energy",
                "rejected": None,
            },
            {"name": "broken", "group": "kernel", "rejected": "error 1.0e-01 is above 3.0e-07"},
        ],
        "left_out": ["late entry"],
    }


def summary() -> dict[str, Any]:
    """The summary of a training run."""
    history = [{"epoch": n, "test_accuracy": 80.0 + n, "seconds": 2.0} for n in (1, 2, 3)]
    return {
        "dataset": "digits",
        "model": "mlp",
        "rule": "bll",
        "blocks": 4,
        "epochs": 3,
        "test_accuracy": 83.0,
        "history": history,
        "seconds": 9.0,
        "energy_j": 90.0,
        "energy_reason": None,
        "device": "cpu",
        "device_name": "Made-up processor",
        "dtype": "float32",
        "threads": 1,
        "batch_size": 64,
        "seed": 0,
        "versions": {"torch": "2.13.0"},
        "commit": None,
    }


def gpu_run() -> dict[str, Any]:
    """What `make gpu` writes."""
    timed = {"cold_us": 10.0, "hot_us": 8.0, "timed_in": "graph", "cold_samples_us": [10.0, 10.0]}
    good = {
        "backend": "triton",
        "bytes": 1000,
        "copy_gb_s": 0.2,
        "error": 1e-7,
        "gate": True,
        "impossible": False,
        "ours": timed,
        "peers": {"eager": {"cold_us": 50.0}, "distributions": {"missing": "OutOfMemoryError"}},
    }
    return {
        "conditions": {
            "date": "2026-11-24",
            "commit": "abc",
            "uncommitted_changes": True,
            "device": "Made-up GPU",
            "device_state": None,
            "python": "3.11",
            "torch": "2.13",
            "cuda": "13.0",
            "bll_kernels": "0.1.0",
            "backends": {"triton": None},
        },
        "stages": {},
        "entries": {
            "good": good,
            "fast": {**good, "impossible": True},
            "wrong": {**good, "gate": False, "error": 0.5},
            "failed": {"backend": "triton", "failure": "RuntimeError: no"},
        },
    }
