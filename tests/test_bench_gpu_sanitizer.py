"""The sanitizer's stage with a made-up sanitizer: what counts as a pass, and what does not."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import every_kernel, sanitize
from bench.gpu.commands import Failed, Late
from bench.gpu.record import Record
from bench.gpu.run import NotFinished, Run, StageFailed

ROOT = Path(__file__).resolve().parent.parent
HEAD = "========= COMPUTE-SANITIZER\n"
CLEAN = "========= ERROR SUMMARY: 0 errors\n"
DIRTY = "========= Invalid __global__ write of size 4 bytes\n========= ERROR SUMMARY: 1 error\n"
#: What each tool finds in faulty.cu where it works.
FAULTS = {
    "memcheck": {"bounds"},
    "racecheck": {"race"},
    "synccheck": {"barrier"},
    "initcheck": {"unset", "foreign-unset"},
}


class Fake:
    """compute-sanitizer, or one that does not work.

    Attributes:
        blind: Tools that find nothing.
        refuses: What it ends with at once.
        unseen: Whether writes of kernels that a filter leaves out are not seen.
        kernels: What a run over every kernel does.
    """

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.settings: list[dict[str, str]] = []
        self.blind: set[str] = set()
        self.refuses = ""
        self.unseen = False
        self.kernels: Callable[[str, str], str] = lambda check, backend: (
            f"{HEAD}called a\ncalled b\n2 calls of {backend}\n{CLEAN}"
        )

    def __call__(
        self,
        run: Run,
        command: list[str],
        settings: dict[str, str] | None = None,
        *,
        limit: float | None = None,
    ) -> str:
        self.commands.append(command)
        self.settings.append(settings or {})
        if command[0].endswith("nvcc"):
            return ""
        if self.refuses:
            raise Failed(1, HEAD + self.refuses)
        check = command[command.index("--tool") + 1]
        if "bench.gpu.every_kernel" in command:
            backend = command[command.index("bench.gpu.every_kernel") + 1]
            return self.kernels(check, backend)
        if check not in self.blind and self._finds(check, command):
            raise Failed(sanitize.FOUND, HEAD + DIRTY)
        return HEAD + CLEAN

    def _finds(self, check: str, command: list[str]) -> bool:
        case, leaves_out = command[-1], "kns=N2at6native" in command
        if case == "foreign-written":
            return check == "initcheck" and leaves_out and self.unseen
        return case in FAULTS[check] and not (case.startswith("foreign") and leaves_out)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    made = Fake()
    monkeypatch.setattr(sanitize, "execute", made)
    monkeypatch.setattr(sanitize.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    return made


def some_run(folder: Path, seconds: float = 60.0) -> Run:
    return Run(Record(folder), time.monotonic() + seconds, full=False, dry=False)


def test_every_tool_over_every_backend(tmp_path: Path, fake: Fake) -> None:
    run = some_run(tmp_path)
    note = sanitize.run_sanitizer(run, ["native", "triton"])
    order = [f"{backend} {check}" for check, backend in sanitize.ORDER]
    assert note == f"passed: {', '.join(order)}" and len(order) == 8
    nvcc = fake.commands[0]
    assert "-arch=sm_90" in nvcc and nvcc[-1].endswith("bench/gpu/faulty.cu")
    for command in fake.commands[1:]:
        text = " ".join(command)
        # Filters are key=value, on mangled names; "regex:" with a plain name is none.
        assert "regex:" not in text and text.count("kns=") == 1
        assert ("--report-api-errors no" in text) == ("memcheck" in text)
    over = [c for c in fake.commands if "bench.gpu.every_kernel" in c]
    assert len(over) == 8 and all("--quick" in command for command in over)
    memcheck = " ".join(over[0])
    assert "--kernel-name kns=3bll4cuda" in memcheck
    initcheck = " ".join(next(c for c in over if "initcheck" in c))
    assert "--kernel-name-exclude kns=N2at6native" in initcheck
    assert {"PYTORCH_NO_CUDA_MEMORY_CACHING"} <= set(fake.settings[-1])
    assert run.record.checks["native memcheck"]["note"] == "2 calls, --kernel-name kns=3bll4cuda"
    # What passed is not run again.
    fake.commands.clear()
    assert sanitize.run_sanitizer(some_run(tmp_path), ["native", "triton"]) == note
    assert len(fake.commands) == 1


def test_a_tool_that_finds_no_planted_fault_is_a_failure(tmp_path: Path, fake: Fake) -> None:
    fake.blind = {"racecheck"}
    with pytest.raises(StageFailed, match="native racecheck: the tool cannot be trusted here"):
        sanitize.run_sanitizer(some_run(tmp_path), ["native"])
    run = some_run(tmp_path)
    assert "does not find the planted fault" in run.record.checks["native racecheck"]["note"]
    assert run.record.checks["native memcheck"]["result"] == "passed"
    ran = [c for c in fake.commands if "bench.gpu.every_kernel" in c and "racecheck" in c]
    assert not ran


def test_a_device_it_cannot_watch_is_a_failure(tmp_path: Path, fake: Fake) -> None:
    fake.refuses = "========= Error: Device not supported. Please refer to the documentation\n"
    with pytest.raises(StageFailed, match="Device not supported"):
        sanitize.run_sanitizer(some_run(tmp_path), ["native"])


def test_a_filter_that_hides_writes_is_not_used(tmp_path: Path, fake: Fake) -> None:
    fake.unseen = True
    run = some_run(tmp_path)
    sanitize.run_sanitizer(run, ["native"])
    assert run.record.checks["native initcheck"]["note"] == "2 calls, no filter"


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (f"{HEAD}{CLEAN}", "no kernel was called"),
        (f"{HEAD}0 calls of native\n{CLEAN}", "no kernel was called"),
        ("2 calls of native\n", "it does not sum up"),
        (f"{HEAD}2 calls of native\n", "it does not sum up"),
        (f"{HEAD}2 calls of native\n{DIRTY}", "it does not sum up"),
    ],
)
def test_a_run_that_says_nothing_is_a_failure(
    tmp_path: Path, fake: Fake, output: str, reason: str
) -> None:
    fake.kernels = lambda check, backend: output
    with pytest.raises(StageFailed, match=reason):
        sanitize.run_sanitizer(some_run(tmp_path), ["native"])


def test_what_it_finds_is_told(tmp_path: Path, fake: Fake) -> None:
    def finds(check: str, backend: str) -> str:
        raise Failed(sanitize.FOUND, f"{HEAD}called a\n{DIRTY}")

    fake.kernels = finds
    with pytest.raises(StageFailed, match="native memcheck: Invalid __global__ write of size 4"):
        sanitize.run_sanitizer(some_run(tmp_path), ["native"])


def test_what_was_not_reached_is_said(tmp_path: Path, fake: Fake) -> None:
    def is_late(check: str, backend: str) -> str:
        if check == "memcheck":
            return f"{HEAD}called a\n1 calls of {backend}\n{CLEAN}"
        raise Late(40.0, f"{HEAD}called a\ncalled b\n")

    fake.kernels = is_late
    run = some_run(tmp_path)
    with pytest.raises(NotFinished, match=r"^passed: native memcheck; 3 not reached: native init"):
        sanitize.run_sanitizer(run, ["native"])
    note = "stopped after 2 calls, without a report until then"
    assert run.record.checks["native initcheck"]["note"] == note
    with pytest.raises(NotFinished, match=r"^passed: none; 4 not reached"):
        sanitize.run_sanitizer(some_run(tmp_path / "late", 3.0), ["native"])

    def finds(check: str, backend: str) -> str:
        raise Late(40.0, HEAD + DIRTY)

    fake.kernels = finds
    with pytest.raises(StageFailed, match="stopped; until then: Invalid __global__ write"):
        sanitize.run_sanitizer(some_run(tmp_path / "dirty"), ["native"])


def test_faulty_kernels_have_every_case() -> None:
    source = sanitize._FAULTY.read_text()
    cases = set(sanitize.PLANTED.values())
    for check in sanitize.PLANTED:
        for chosen in (sanitize.NOT_TORCH, ()):
            cases |= set(sanitize.faultless(check, chosen))
    assert cases >= {"foreign-unset", "foreign-written", "clean"}
    for case in cases:
        assert f'asked("{case}")' in source


def test_filters_are_parts_of_mangled_names(tmp_path: Path) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is missing")
    target = tmp_path / "faulty.ptx"
    words = ["-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-ptx", "-o", str(target)]
    subprocess.run([nvcc, *words, str(sanitize._FAULTY)], check=True, timeout=300)
    names = re.findall(r"\.entry (\w+)", target.read_text())
    ours, foreign = (x[1].removeprefix("kns=") for x in (sanitize.OURS, sanitize.NOT_TORCH))
    assert len(names) == 7 and sum(ours in name for name in names) == 5
    assert sum(foreign in name for name in names) == 2
    # All kernels of csrc/cuda are in that namespace.
    for path in (ROOT / "csrc" / "cuda").glob("*.cu"):
        assert "namespace bll::cuda" in path.read_text(), path.name


def test_calls_that_came_through_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def calls(*words: Any) -> Any:
        yield "one"
        raise RuntimeError("class_loss of this has no CUDA kernel")

    for name in ("pair_calls", "class_calls", "map_calls", "batch_calls", "step_calls"):
        monkeypatch.setattr(every_kernel, name, calls)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    count = every_kernel.main("reference", every_kernel.DTYPES[:1])
    out = capsys.readouterr().out
    assert count == out.count("called one\n") == out.count("left out: ") > 3
    assert out.endswith(f"{count} calls of reference\n")
